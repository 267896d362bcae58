"""The tokenizer as llama.cpp has to know it.

llama.cpp has tokenizers of its own and is told by names which one to use. The names are decided here from the steps
that the model's tokenizer really takes (normaliser, word splitter, byte fallback), as transformers runs it: never
from the model's name. What llama.cpp would cut up differently is refused; the gate of each export then compares ids.

Sources: src/llama-vocab.cpp of llama.cpp, the GGUF specification (tokenizer.ggml.*), the tokenizers library.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
from gguf import TokenType
from transformers import GenerationConfig, PreTrainedTokenizerBase

from trainer import chat_tokens
from trainer.contract import BadSpec, Message
from trainer.gguf_config import WAY_OUT

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_HEAD = r"[^\r\n\p{L}\p{N}]?"
_TEKKEN = (
    rf"{_HEAD}{_UPPER}*{_LOWER}+|{_HEAD}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Word splitters of byte-level tokenizers, and llama.cpp's names: first where a word that is a token is taken whole
# (ignore_merges), then where it is merged together all the same. None: llama.cpp has no name for it.
_SPLITTERS: dict[str, tuple[str | None, str | None]] = {
    _CONTRACTIONS + _WORDS + r"\p{N}" + _REST: (None, "qwen2"),
    _CONTRACTIONS + _WORDS + r"\p{N}{1,3}" + _REST: ("llama-bpe", "dbrx"),
    _TEKKEN: ("tekken", None),
    "gpt-2": (None, "gpt-2"),
    "digits, gpt-2": (None, "smollm"),
}
_SPACE = "▁"  # what SentencePiece writes for a space
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_MISSING_MERGES = 0.01  # share of merges that may be missing before a vocabulary is not SentencePiece's


@dataclass
class Vocabulary:
    """`tokenizer.ggml.*`: what llama.cpp is told. `scores` are of SentencePiece's kind, `merges` of the other."""

    model: str  # gpt2 or llama
    pre: str
    tokens: list[str]
    types: list[TokenType]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    ids: dict[str, int] = field(default_factory=dict)  # bos, eos, eot, unk, pad
    add_bos: bool = False
    space_prefix: bool = False
    template: str = ""


def read(folder: Path, rows: int) -> Vocabulary:
    """The tokenizer in `folder` for a model with `rows` rows of embeddings. Raises BadSpec.

    Tokens are padded to `rows`, as the rows are; tokens beyond them, which the model cannot read, are left out.
    """
    tokenizer = chat_tokens.load_tokenizer(folder)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise BadSpec(f"the tokenizer in {folder} is none of the tokenizers library: {WAY_OUT}")
    parts = json.loads(backend.to_str())
    if parts["model"]["type"] != "BPE" or parts["model"].get("dropout"):
        raise BadSpec(f"a {parts['model']['type']} tokenizer cannot be written as GGUF: {WAY_OUT}")
    tokens, types = _tokens(tokenizer, parts, rows)
    if parts["model"].get("byte_fallback"):
        made = _sentencepiece(tokenizer, parts, tokens, types)
    else:
        pre = _splitter(parts, backend.model)
        made = Vocabulary("gpt2", pre, tokens, types, merges=_merges(parts))
    _special(made, tokenizer, folder)
    return made


def write(vocabulary: Vocabulary, writer: gguf.GGUFWriter) -> None:
    """Put it into the metadata of a file that is being made."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.model == "llama":
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.space_prefix)
    else:
        writer.add_token_merges(vocabulary.merges)
    for name, number in vocabulary.ids.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(False)  # chats end where the template ends them
    writer.add_chat_template(vocabulary.template)


# -- tokens -----------------------------------------------------------------------------------------


def _tokens(
    tokenizer: PreTrainedTokenizerBase, parts: dict[str, Any], rows: int
) -> tuple[list[str], list[TokenType]]:
    """Texts and types by id. Special tokens are control tokens, other added ones are found in any text."""
    added = {entry["id"]: entry for entry in parts["added_tokens"]}
    pieces = bool(parts["model"].get("byte_fallback"))
    by_id = {number: text for text, number in tokenizer.get_vocab().items()}
    texts: list[str] = []
    types: list[TokenType] = []
    for number in range(rows):
        text, kind = by_id.get(number), TokenType.NORMAL
        if text is None:
            text, kind = f"[PAD{number}]", TokenType.UNUSED
        elif number in added:
            text = added[number]["content"].replace(_SPACE, " ") if pieces else added[number]["content"]
            special = added[number]["special"] or _looks_special(text)
            kind = TokenType.CONTROL if special else TokenType.USER_DEFINED
        elif pieces and _BYTE.fullmatch(text):
            kind = TokenType.BYTE
        texts.append(text)
        types.append(kind)
    twice = len(texts) - len(set(texts))
    if twice:
        raise BadSpec(f"the tokenizer has {twice} tokens that llama.cpp would take for another one: {WAY_OUT}")
    return texts, types


def _looks_special(text: str) -> bool:
    """Tokens that models forget to mark as special; llama.cpp's converter marks the same ones."""
    framed = (text.startswith("<|") and text.endswith("|>")) or (text.startswith("<｜") and text.endswith("｜>"))
    unused = text.startswith("<unused") and text.endswith(">")
    return framed or unused or text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")


# -- byte-level BPE ---------------------------------------------------------------------------------


def _splitter(parts: dict[str, Any], model: Any) -> str:
    """llama.cpp's name of this tokenizer's word splitter. Raises BadSpec where it has none."""
    steps = _steps(parts["pre_tokenizer"])
    normaliser = (parts["normalizer"] or {}).get("type", "NFC")
    # Nobody writes anything but composed characters; llama.cpp normalises nothing.
    names = _SPLITTERS.get(steps) if steps is not None and normaliser == "NFC" else None
    whole, merged = names or (None, None)
    ignore = bool(parts["model"].get("ignore_merges"))
    found = whole if ignore else merged
    if found is None and (whole or merged) and _merges_reach_all(parts, model):
        found = whole or merged  # it makes no difference here
    if found is None:
        raise BadSpec(f"llama.cpp has no name for the way in which this tokenizer splits words: {WAY_OUT}")
    return found


def _steps(pre: dict[str, Any] | None) -> str | None:
    """The splitter as a key of `_SPLITTERS`; None where the steps are none that llama.cpp takes."""
    steps = pre["pretokenizers"] if pre and pre["type"] == "Sequence" else [pre] if pre else []
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    before, own = steps[:-1], bool(steps[-1].get("use_regex", True))
    if own:  # the splitter of GPT-2, built into the step
        digits = [step["type"] == "Digits" and step["individual_digits"] for step in before]
        return {(): "gpt-2", (True,): "digits, gpt-2"}.get(tuple(digits))
    if len(before) != 1 or before[0]["type"] != "Split":
        return None
    if before[0]["behavior"] != "Isolated" or before[0].get("invert"):
        return None
    expression = before[0]["pattern"].get("Regex")
    return expression if isinstance(expression, str) else None


def _merges_reach_all(parts: dict[str, Any], model: Any) -> bool:
    """Whether each token is what merging its own letters ends in: then taking it whole is the same."""
    from tokenizers import models

    merges = [(left, right) for left, right in parts["model"]["merges"]]
    added = {entry["content"] for entry in parts["added_tokens"]}
    plain = models.BPE(vocab=parts["model"]["vocab"], merges=merges, ignore_merges=False)
    return all(text in added or len(plain.tokenize(text)) == 1 for text in parts["model"]["vocab"])


def _merges(parts: dict[str, Any]) -> list[str]:
    merges = [entry.split(" ") if isinstance(entry, str) else entry for entry in parts["model"]["merges"]]
    if any(len(entry) != 2 or " " in entry[0] or " " in entry[1] for entry in merges):
        raise BadSpec(f"the tokenizer merges tokens that hold spaces, which GGUF cannot say: {WAY_OUT}")
    return [f"{left} {right}" for left, right in merges]


# -- SentencePiece's kind ---------------------------------------------------------------------------


def _sentencepiece(
    tokenizer: PreTrainedTokenizerBase, parts: dict[str, Any], tokens: list[str], types: list[TokenType]
) -> Vocabulary:
    """llama.cpp merges the neighbours whose union has the highest score: scores that give the merges' own order."""
    bare = {f"<0x{byte:02X}>" for byte in range(256)} - set(tokens)
    if bare:
        raise BadSpec(f"the tokenizer lacks byte tokens ({min(bare)}), without which llama.cpp fails: {WAY_OUT}")
    prefix = _prefix(tokenizer, parts)
    scores = _scores(parts, tokens)
    unknown = parts["model"].get("unk_token") or tokenizer.unk_token
    if unknown in tokens:
        types[tokens.index(unknown)] = TokenType.UNKNOWN
    return Vocabulary("llama", "default", tokens, types, scores=scores, space_prefix=prefix)


def _prefix(tokenizer: PreTrainedTokenizerBase, parts: dict[str, Any]) -> bool:
    """Whether llama.cpp should put a space before text that begins a chat or follows a special token.

    llama.cpp does both or neither. Where the tokenizer puts one only at the very start, chats decide: theirs is a
    special token as a rule, and no space is ever put. Raises BadSpec for other ways to treat spaces.
    """
    normaliser, pre = parts["normalizer"], parts["pre_tokenizer"]
    rules = _flat(normaliser, "normalizers")
    kinds = [(rule["type"], rule.get("prepend") or rule.get("content")) for rule in rules]
    if pre is not None and pre["type"] == "Metaspace" and not rules:
        if pre.get("split", True) or pre["replacement"] != _SPACE:
            raise BadSpec(f"the tokenizer splits words before it merges, which llama.cpp's does not: {WAY_OUT}")
        scheme = pre.get("prepend_scheme", "always")
        return scheme == "always" or (scheme == "first" and not _chats_begin_special(tokenizer))
    harmless = pre is None or (pre["type"] == "Split" and pre["pattern"] == {"String": " "})
    if harmless and kinds == [("Replace", _SPACE)]:
        return False
    if harmless and kinds == [("Prepend", _SPACE), ("Replace", _SPACE)]:
        return True
    raise BadSpec(f"llama.cpp has no name for the way in which this tokenizer treats spaces: {WAY_OUT}")


def _flat(step: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    return list(step[key]) if step["type"] == "Sequence" else [step]


def _scores(parts: dict[str, Any], tokens: list[str]) -> list[float]:
    """The negative rank at which each token is made; 0 for those that no merge makes.

    Raises BadSpec where the merges are not all those that the vocabulary allows: scores cannot say that.
    """
    added = {entry["content"] for entry in parts["added_tokens"]}
    vocabulary = parts["model"]["vocab"].keys() - added
    given: dict[str, list[str]] = {}
    for entry in parts["model"]["merges"]:
        left, right = entry.split(" ") if isinstance(entry, str) else entry
        given.setdefault(left + right, []).append(left)
    whole = {text for text in vocabulary if len(text) == 1 or text in given}
    expected = missing = 0
    for text, lefts in given.items():
        if text in added:
            continue
        possible = [text[:cut] for cut in range(1, len(text)) if text[:cut] in whole and text[cut:] in whole]
        expected += len(possible)
        missing += len(set(possible) - set(lefts))
    if missing > _MISSING_MERGES * expected:
        raise BadSpec(f"the tokenizer's merges are not SentencePiece's, and llama.cpp has no name for them: {WAY_OUT}")
    rank = {text: -1.0 - number for number, text in enumerate(given)}
    return [rank.get(text, 0.0) for text in tokens]


# -- special tokens ---------------------------------------------------------------------------------


def _rendered(tokenizer: PreTrainedTokenizerBase) -> str:
    return chat_tokens.prompt_text(tokenizer, [Message(role="user", content="a")])


def _chats_begin_special(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = chat_tokens.encode(tokenizer, _rendered(tokenizer))
    return bool(ids) and ids[0] in set(tokenizer.added_tokens_decoder)


def _special(made: Vocabulary, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Ids of special tokens, and whether prompts begin with one: as in the chats that were trained."""
    generation = _generation(folder)
    eos = tokenizer.eos_token_id
    if eos is None:
        eos = next(iter(_numbers(generation.get("eos_token_id"))), None)
    if eos is None:
        raise BadSpec(f"the tokenizer in {folder} has no end token: set eos_token in tokenizer_config.json")
    ends = [number for number in sorted(chat_tokens.end_tokens(tokenizer)) if number != eos]
    bos = tokenizer.bos_token_id
    if bos is None:  # llama.cpp would take token 11 for it
        bos = next(iter(_numbers(generation.get("bos_token_id"))), tokenizer.pad_token_id)
    ids = {"bos": bos, "eos": eos, "eot": ends[0] if ends else None, "pad": tokenizer.pad_token_id}
    if made.model == "llama":
        ids["unk"] = tokenizer.unk_token_id
    made.ids = {name: int(number) for name, number in ids.items() if number is not None and number < len(made.tokens)}
    if "eos" not in made.ids:
        raise BadSpec(f"the end token of {folder} is none that the model can write: its id {eos} is out of range")
    prompt = chat_tokens.encode(tokenizer, _rendered(tokenizer))
    made.add_bos = tokenizer.bos_token_id is not None and prompt[:1] == [tokenizer.bos_token_id]
    made.template = str(tokenizer.get_chat_template())


def _generation(folder: Path) -> dict[str, Any]:
    try:
        found = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError):
        found = GenerationConfig.from_dict(json.loads((folder / "config.json").read_bytes()))
    return dict(found.to_dict())


def _numbers(value: Any) -> list[int]:
    return [int(number) for number in (value if isinstance(value, list) else [value]) if number is not None]
