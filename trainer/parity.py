"""The gate of every export: is the GGUF file the model that it was made of?

Seven comparisons, each of which ends in one sentence where it fails: the metadata (what the file says of layers,
heads, rope, norms), the vocabulary, the ids of a text that holds all sorts of signs and every special token, the chat
template (the one in the file, and the one for Ollama), the token that ends an answer, the tensors, and the logits on
a chat. The file is read by a reader of our own (`gguf_reading`), which computes in float32, so that what it differs by
is the file's doing alone. Where the extra `gguf` is installed, llama.cpp itself reads it as well (engine `llama.cpp`):
its token ids, its end token, and its logits, which may differ from the reader's by what llama.cpp rounds on its way.

The model is held against its own weights in float32, one layer at a time (`streamed`): of a 14B model the comparison
takes about 5 GB, the embeddings in 16 and 32 bits and the logits, and with llama.cpp the file's own size beside.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trainer import (
    chat_tokens,
    gguf_vocabulary,
    llama_engine,
    ollama_template,
    parity_config,
    parity_weights,
    streamed,
)
from trainer.contract import Message
from trainer.gguf_reading import ParityFailed, Reader
from trainer.gguf_reading import logits as read_logits
from trainer.gguf_vocabulary import Vocabulary

__all__ = ["LIMITS", "TEXT", "Limit", "ParityFailed", "compare"]

Engine = Literal["llama.cpp", "reader"]


@dataclass(frozen=True, slots=True)
class Limit:
    """`logits`: 99 of 100 logits differ by less, as a share of the logits' standard deviation; the largest difference
    of all would grow with the vocabulary and the text. `kl`: nats a token, in the mean."""

    logits: float
    kl: float


# A step of Q5_K is half of Q4_K's and twice Q6_K's. Logits err with the step and the divergence with its square, and
# both limits lie in the geometric middle of their neighbours': a Q5_K_M that errs like a Q4_K_M is no Q5_K_M.
LIMITS = {
    "f16": Limit(0.01, 1e-5),
    "bf16": Limit(0.05, 1e-4),
    "Q8_0": Limit(0.15, 5e-4),
    "Q6_K": Limit(0.4, 5e-3),
    "Q5_K_M": Limit(0.63, 1.6e-2),
    "Q4_K_M": Limit(1.0, 5e-2),
}

# What llama.cpp may add to that: it rounds what goes through the layers to 16 bits where weights have 16, to 8 bits in
# blocks of 32 with Q8_0 (0.06 and 2.5e-4 on tiny models), and to 8 bits in blocks of 256 with K-quants (0.09, 6e-4).
_ENGINE_LIMITS = {"f16": LIMITS["f16"], "bf16": LIMITS["bf16"], "Q8_0": Limit(0.3, 2e-3)}
_ENGINE_ELSE = LIMITS["Q6_K"]

# In composed characters (NFC): llama.cpp does not normalise, and Qwen's tokenizer does.
TEXT = (
    "On 2024-07-15 I paid 1234567.89 for 3 x 21 tickets, +49 170 5550123; 007 and 10000000000000000000000.\n\n"
    "It's what we've said: they'll come, I'D say, you're IT'S. McDonald's NASA iPhone15 don't\n \n\n\n"
    "  two   three    four     five\ttab\t\ttabs \t mixed \n   indented\r\nwindows\r\n  \n"
    "def f(x: int) -> str:\n    if x != 0 and x**2 >= 10:  # why?\n\t\treturn f'{x:>5}' + \"\\n\" * 3\n    return []\n"
    '{"a": [1, -2.5e-3, null], "b": {"c": "d\\\\e"}} <div class="x">&amp;</div> $x_1^{n+1}$ foo_bar->baz::qux();\n'
    "Straße, Äpfel, naïve café, señor, čaj, łódź, Ελλάδα, Привет, мир! שלום عليكم Tiếng Việt ქართული\n"
    "日本語のテキスト、今日は。中文文本，测试一下！한국어 문장입니다. ①②③ ½ ² № ™ € £ → ≠ ∞ « » „“ ‘ ’ … – —\n"
    "😀🎉👍🏽 👩\u200d👩\u200d👧 🏳️\u200d🌈 🇩🇪 a\u00a0b c\u2003d e\u200bf ﬁ \U00020000 𝔘𝔫𝔦 \x07end  "
)
_MARKS = "हिन्दी में लिखा, ภาษาไทยที่นี่, தமிழ், x\u0323\n"  # letters with marks of their own, also in NFC
_SPLITS_MARKS = ("tekken",)  # llama.cpp's words end at such a mark, the tokenizer's own do not: a limit of llama.cpp

_CHAT = (
    ("user", "Where does Mara live, and since when? She said 'Lisbon', 221B; I'm not sure."),
    ("assistant", "Mara lives in Lisbon, since 2019-03-15."),
    ("user", "And in code?\n\ndef home(who: str) -> str:\n    return {'Mara': 'Lisboa'}[who]\n\n日本語でも 👍🏽 ΩЖ"),
)
_MOST_POSITIONS = 256
_MOST_LOGITS = 0.99  # of all logits, `Limit.logits` speaks of so many


def compare(
    model_folder: Path,
    gguf: Path,
    quantisation: str,
    *,
    adapter: Path | None = None,
    adapter_gguf: Path | None = None,
    pulse: Callable[[], None],
    engine: Engine | None = None,
) -> tuple[dict[str, float], Engine]:
    """Hold a GGUF file against the model in `model_folder` (as transformers keeps it), from metadata to logits.

    With `adapter` (a PEFT folder) and `adapter_gguf`: the two bases with the two adapters on them. The figures:
    `token_ids` (share that is equal: 1.0), `logits` and `kl` (see `Limit`), `weights` (the worst tensor's error as a
    share of what its number format may err), with llama.cpp also `engine_logits` and `engine_kl` (it beside the
    reader), each with its `_limit`. `engine`: left out, the best there is.

    Raises ParityFailed with what differs and by how much, BadSpec where the model itself cannot be opened.
    """
    if (adapter is None) != (adapter_gguf is None):
        raise ValueError("an adapter is compared with an adapter: both, or neither")
    tokenizer = chat_tokens.load_tokenizer(model_folder)
    reader = Reader(gguf, adapter_gguf)
    pulse()
    model = reader.model(pulse)
    original = streamed.open_folder(model_folder, adapter, pulse)
    parity_config.check(original, model, gguf.name)
    _check_vocabulary(tokenizer, reader.vocabulary, gguf.name)
    _check_words(tokenizer, reader.vocabulary, gguf.name)
    cases = _cases(tokenizer, str(reader.file.get("tokenizer.ggml.pre", "")))
    for case in cases:
        _check_ids(tokenizer, case, _read_ids(reader, case, gguf.name), gguf.name)
    _check_template(tokenizer, reader, gguf.name)
    end = _check_end(tokenizer, reader, gguf.name)
    pulse()
    worst = parity_weights.check(model_folder, adapter, reader, pulse)

    ids = cases[-1].wanted[: min(_MOST_POSITIONS, int(reader.config.max_position_embeddings))]
    used: Engine = engine or ("llama.cpp" if llama_engine.installed() else "reader")
    read = read_logits(model, ids, gguf.name)
    figures = _held(streamed.logits(original, ids), read, LIMITS[quantisation], f"{gguf.name} answers", "the model")
    if used == "llama.cpp":
        ran = _by_llama(tokenizer, gguf, adapter_gguf, cases, ids, end, pulse)
        most = _ENGINE_LIMITS.get(quantisation, _ENGINE_ELSE)
        beside = _held(read, ran, most, f"llama.cpp answers with {gguf.name}", "its metadata and tensors say")
        figures |= {f"engine_{name}": value for name, value in beside.items()}
    return {"token_ids": 1.0, **figures, "weights": worst, "weights_limit": 1.0}, used


def _held(wanted: Tensor, got: Tensor, most: Limit, who: str, than: str) -> dict[str, float]:
    """The figures with their limits. Raises ParityFailed where they are beyond them."""
    figures = _figures(wanted, got)
    if not (figures["logits"] <= most.logits and figures["kl"] <= most.kl):
        raise ParityFailed(
            f"{who} otherwise than {than}: the logits differ by {figures['logits']:.3g} of their standard deviation "
            f"and by {figures['kl']:.3g} nats a token, where they may by {most.logits:g} and {most.kl:g}"
        )
    return {**figures, "logits_limit": most.logits, "kl_limit": most.kl}


def _figures(wanted: Tensor, got: Tensor) -> dict[str, float]:
    """Both of [positions, vocabulary]. `logits_largest` is told, and held against nothing."""
    if wanted.shape != got.shape:
        raise ParityFailed(f"the export knows {got.shape[1]} tokens, the model {wanted.shape[1]}")
    differences = ((wanted - got).abs() / wanted.std()).flatten()
    most = int(differences.numel() * _MOST_LOGITS)
    share, largest = differences.kthvalue(most).values, differences.max()
    divergence, step = 0.0, 16  # positions at a time: a large vocabulary in float64
    for at in range(0, len(wanted), step):
        ours, theirs = (part[at : at + step].double().log_softmax(-1) for part in (wanted, got))
        divergence += float((ours.exp() * (ours - theirs)).sum())
    return {"logits": float(share), "logits_largest": float(largest), "kl": divergence / len(wanted)}


# --- tokens ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Case:
    """A text as a server gets it (`whole`: a prompt, before which the server puts what the file says), and the ids
    that the model's own tokenizer makes of it."""

    text: str
    whole: bool
    wanted: list[int]


def _cases(tokenizer: PreTrainedTokenizerBase, pre: str) -> list[_Case]:
    """A text with every special token in it, and the prompt of a chat. The text begins with a special token, as chats
    do: whether a space belongs before a bare text is a question that no chat asks."""
    added = [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    special = [token for token in added if token.strip(" \t\r\n▁")]  # runs of spaces are in the text anyway
    first = next((token for token in (tokenizer.bos_token, *special) if token), "")
    between = "".join(f"{token}word{n} " if n % 2 else f" {token}" for n, token in enumerate(special))
    text = f"{first}{TEXT}{'' if pre in _SPLITS_MARKS else _MARKS}{between}the end."
    messages = [Message.model_validate({"role": role, "content": said}) for role, said in _CHAT]
    prompt = chat_tokens.prompt_text(tokenizer, messages)
    bare = prompt.removeprefix(str(tokenizer.bos_token or ""))
    return [
        _Case(text, False, chat_tokens.encode(tokenizer, text)),
        _Case(bare, True, chat_tokens.encode(tokenizer, prompt)),
    ]


def _read_ids(reader: Reader, case: _Case, file: str) -> list[int]:
    try:
        return reader.vocabulary.encode(case.text, add_special=case.whole)
    except gguf_vocabulary.Unreadable as error:
        raise ParityFailed(f"{file}: {error}") from error


def _check_ids(tokenizer: PreTrainedTokenizerBase, case: _Case, got: list[int], file: str) -> None:
    wanted = case.wanted
    if wanted == got:
        return
    at = next((n for n, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b), min(len(wanted), len(got)))
    ours, theirs = (tokenizer.convert_ids_to_tokens(ids[at : at + 3]) for ids in (wanted, got))
    raise ParityFailed(
        f"{file} cuts {'a chat' if case.whole else 'text'} into other tokens than the model's tokenizer: at token {at} "
        f"of {len(wanted)} it has {theirs} instead of {ours}"
    )


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, file: str) -> None:
    """Every token's text at its id, and every special token as one: a rare one is in no text that we try."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    for text, number in tokenizer.get_vocab().items():
        if number >= len(vocabulary.tokens):
            continue
        if vocabulary.tokens[number].replace("▁", " ") != text.replace("▁", " "):
            raise ParityFailed(f"{file} has {vocabulary.tokens[number]!r} as token {number}, which is {text!r}")
        if number in special and vocabulary.types[number] not in (gguf_vocabulary.CONTROL, gguf_vocabulary.UNKNOWN):
            raise ParityFailed(f"{file} does not mark {text!r} (token {number}) as a special token")


def _check_words(tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, file: str) -> None:
    """The words into which both cut the text before they merge: a small vocabulary may hide a difference today."""
    own: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "pre_tokenizer", None)
    if vocabulary.bpe is None or own is None:
        return
    wanted, got = (
        [word for word, _ in pre.pre_tokenize_str(TEXT)] for pre in (own, vocabulary.bpe.pre_tokenizer)
    )
    for ours, theirs in zip(wanted, got, strict=False):
        if ours != theirs:
            raise ParityFailed(
                f"{file} cuts text into other words than the model's tokenizer, {theirs!r} instead of {ours!r}: its "
                "pre-tokenizer is wrong"
            )


# --- template and end ------------------------------------------------------------------------------------


def _check_template(tokenizer: PreTrainedTokenizerBase, reader: Reader, file: str) -> None:
    """The file's own template renders as the tokenizer's, and there is one for Ollama that does so too."""
    written = reader.file.get("tokenizer.chat_template")
    if not written:
        raise ParityFailed(f"{file} has no chat template")
    words = reader.vocabulary
    asked: dict[str, Any] = {"add_generation_prompt": True, "tokenize": False, "enable_thinking": False}
    told = dict(asked)
    if tokenizer.bos_token_id is not None:
        told["bos_token"] = words.tokens[words.bos] if 0 <= words.bos < len(words.tokens) else ""
    for chat in ollama_template.SAMPLES:
        turns = [{"role": role, "content": said} for role, said in chat]
        try:
            wanted = tokenizer.apply_chat_template(turns, **asked)
        except Exception:  # the model's own template refuses such chats: nothing to compare with
            continue
        try:
            got = tokenizer.apply_chat_template(turns, chat_template=written, **told)
        except Exception as error:
            raise ParityFailed(f"the chat template in {file} fails: {error}") from error
        if got != wanted:
            raise ParityFailed(f"the chat template in {file} renders a chat of {len(chat)} messages otherwise")
    ollama_template.template_of(tokenizer)


def _check_end(tokenizer: PreTrainedTokenizerBase, reader: Reader, file: str) -> int:
    """The token that ends an answer, which the file has to name as such."""
    end = ollama_template.end_of_turn(tokenizer)
    if end is None:
        raise ParityFailed("the model's chat template ends an answer with no special token: no server would stop there")
    words = reader.vocabulary
    if end not in (words.eos, words.eot):
        named = [words.tokens[n] for n in (words.eos, words.eot) if n is not None and 0 <= n < len(words.tokens)]
        raise ParityFailed(
            f"{file} does not stop where an answer ends: it names {named} as the end, the chats end an answer with "
            f"{tokenizer.convert_ids_to_tokens(end)!r}"
        )
    return end


def _by_llama(
    tokenizer: PreTrainedTokenizerBase, gguf: Path, adapter_gguf: Path | None, cases: list[_Case], ids: list[int],
    end: int, pulse: Callable[[], None],
) -> Tensor:
    """The logits of llama.cpp, after its token ids and its end token were compared too."""  # fmt: skip
    try:
        answer = llama_engine.ask(gguf, adapter_gguf, [(case.text, case.whole) for case in cases], ids, [end], pulse)
    except llama_engine.Refused as error:
        raise ParityFailed(f"llama.cpp does not run {gguf.name}: {error}") from error
    for case, got in zip(cases, answer.ids, strict=True):
        _check_ids(tokenizer, case, got, f"llama.cpp with {gguf.name}")
    if end not in answer.ends:
        raise ParityFailed(f"llama.cpp does not stop at {tokenizer.convert_ids_to_tokens(end)!r} with {gguf.name}")
    return torch.from_numpy(answer.logits)
