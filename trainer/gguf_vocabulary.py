"""A tokenizer rebuilt from a GGUF file's metadata alone, as llama.cpp builds it (src/llama-vocab.cpp).

What a file leaves out takes llama.cpp's default, so that a forgotten key shows as other token ids. Texts are first
cut at the special and user-defined tokens, the longest first; what lies between goes through byte-level BPE
(`tokenizer.ggml.model` gpt2) or through SentencePiece's merging of the best-scored pair (llama).
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # gguf.TokenType

_QWEN2 = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+"
    r"|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")


@dataclass(frozen=True)
class _Pre:
    """How llama.cpp cuts text before BPE, by the name in `tokenizer.ggml.pre`, and what else that name sets."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


PRE = {
    "default": _Pre(_DEFAULT),
    "gpt-2": _Pre((_GPT2,)),
    "qwen2": _Pre((_QWEN2,)),
    "deepseek-r1-qwen": _Pre((_QWEN2,)),
    "llama-bpe": _Pre((_LLAMA3,), ignore_merges=True, add_bos=True),
    "llama3": _Pre((_LLAMA3,), ignore_merges=True, add_bos=True),
    "llama-v3": _Pre((_LLAMA3,), ignore_merges=True, add_bos=True),
    "dbrx": _Pre((_LLAMA3,)),
    "smaug-bpe": _Pre((_LLAMA3,)),
    "tekken": _Pre((_TEKKEN,), ignore_merges=True, add_bos=True),
    "smollm": _Pre((r"\p{N}", _GPT2)),
}


class Unreadable(ValueError):
    """llama.cpp would not load this vocabulary, or we do not know how it would. The message is part of a sentence."""


@dataclass(frozen=True)
class Vocabulary:
    """`tokens` and `types` by id; `eos` and `eot` as written or as llama.cpp takes them where they are not."""

    model: str
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    bos: int
    eos: int
    eot: int | None
    add_bos: bool
    add_space_prefix: bool
    bpe: Tokenizer | None = None
    ids: dict[str, int] = field(default_factory=dict)
    cuts: Sequence[int] = ()

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids, special tokens in the text taken as such; `add_special`: as a server asks for a prompt."""
        found = [self.bos] if add_special and self.add_bos else []
        fragments: list[str | int] = [text] if text else []
        for number in self.cuts:
            fragments = _cut(fragments, self.tokens[number], number)
        after_special = True
        for fragment in fragments:
            if isinstance(fragment, int):
                found.append(fragment)
            elif self.bpe is not None:
                found += self.bpe.encode(fragment, add_special_tokens=False).ids
            else:
                prefix = " " if self.add_space_prefix and after_special else ""
                found += self._merged((prefix + fragment).replace(" ", "▁"))
            after_special = isinstance(fragment, int)
        return found

    def _merged(self, text: str) -> list[int]:
        """SentencePiece's way: of all neighbours that make a token the best-scored are joined, the leftmost first."""
        parts: list[str] = list(text)
        before = list(range(-1, len(parts) - 1))
        after = [*range(1, len(parts)), -1]
        queue: list[tuple[float, int, int, str]] = []

        def offer(left: int, right: int) -> None:
            if left >= 0 and right >= 0 and (joined := parts[left] + parts[right]) in self.ids:
                heapq.heappush(queue, (-self.scores[self.ids[joined]], left, right, joined))

        for at in range(1, len(parts)):
            offer(at - 1, at)
        while queue:
            _, left, right, joined = heapq.heappop(queue)
            if not parts[left] or not parts[right] or parts[left] + parts[right] != joined:
                continue
            parts[left], parts[right] = joined, ""
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            offer(before[left], left)
            offer(left, after[left])
        return [number for part in parts if part for number in self._known(part)]

    def _known(self, part: str) -> list[int]:
        """The token, or its bytes. Raises Unreadable where the vocabulary lacks a byte, as llama.cpp does."""
        if part in self.ids:
            return [self.ids[part]]
        spelt = [f"<0x{byte:02X}>" for byte in part.encode()]
        if any(byte not in self.ids for byte in spelt):
            raise Unreadable(f"its vocabulary has no token for {part!r}")
        return [self.ids[byte] for byte in spelt]


def _cut(fragments: list[str | int], token: str, number: int) -> list[str | int]:
    if not any(isinstance(fragment, str) and token in fragment for fragment in fragments):
        return fragments
    found: list[str | int] = []
    for fragment in fragments:
        if isinstance(fragment, int):
            found.append(fragment)
            continue
        first, *others = fragment.split(token)
        found += [first] if first else []
        for other in others:
            found += [number, other] if other else [number]
    return found


def read(values: dict[str, Any]) -> Vocabulary:
    """The tokenizer of a file's metadata; `values` by key without `tokenizer.ggml.`. Raises Unreadable."""
    model = values.get("model")
    if model not in ("gpt2", "llama"):
        raise Unreadable(f"tokenizer.ggml.model is {model!r}, where gpt2 or llama is known")
    tokens = [str(token) for token in values.get("tokens") or ()]
    if not tokens or len(set(tokens)) != len(tokens):
        raise Unreadable("tokenizer.ggml.tokens is missing or names a token twice")
    types = list(values.get("token_type") or [NORMAL] * len(tokens))
    scores = list(values.get("scores") or [0.0] * len(tokens))
    if len(types) < len(tokens) or len(scores) < len(tokens):
        raise Unreadable("tokenizer.ggml.token_type or scores is shorter than the vocabulary")
    ids = {token: number for number, token in enumerate(tokens)}
    pre = _pre(values) if model == "gpt2" else _Pre((), add_bos=True)
    special = [n for n, kind in enumerate(types[: len(tokens)]) if kind in (CONTROL, USER_DEFINED, UNKNOWN)]
    default = 11 if model == "gpt2" else None
    return Vocabulary(
        model=str(model), tokens=tokens, types=types, scores=scores, ids=ids,
        bos=int(values.get("bos_token_id", default or 1)),
        eos=int(values.get("eos_token_id", default or 2)),
        eot=values.get("eot_token_id"),
        add_bos=bool(values.get("add_bos_token", pre.add_bos)),
        add_space_prefix=bool(values.get("add_space_prefix", model == "llama")),
        bpe=_bpe(values, ids, pre) if model == "gpt2" else None,
        cuts=sorted(special, key=lambda number: -len(tokens[number].encode())),
    )  # fmt: skip


def _pre(values: dict[str, Any]) -> _Pre:
    name = values.get("pre") or "default"
    if name not in PRE:
        raise Unreadable(f"its pre-tokenizer {name!r} is not known here")
    return PRE[name]


def _bpe(values: dict[str, Any], ids: dict[str, int], pre: _Pre) -> Tokenizer:
    merges = values.get("merges")
    if not merges:
        raise Unreadable("tokenizer.ggml.merges is missing")
    pairs = []
    for line in merges:
        cut = line.find(" ", 1)
        pairs.append((line[:cut], line[cut + 1 :]))
    try:
        made = Tokenizer(models.BPE(vocab=ids, merges=pairs, ignore_merges=pre.ignore_merges))
    except Exception as error:  # the library has no kind of its own
        raise Unreadable(f"its merges do not fit its tokens ({error})") from error
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return made
