"""From chat messages to token ids with a loss mask, by the tokenizer's own chat template.

Loss lies on the text of the turns that carry it and on the token that ends the turn; never on headers
or on what a template inserts before the text (Qwen3 puts an empty `<think>` block there).
"""

import bisect
import re
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from trainer.contract import BadSpec, Message

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_PLAIN = (  # GPT-J and others that know no chat tokens: names of roles, and the end-of-text token as the end
    "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}"
    "{{ eos_token if m.role == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)
_FAMILIES = (("<|im_end|>", _CHATML), ("<|eot_id|>", _LLAMA), ("<|end|>", _PHI))

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")

_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE = re.compile(r"[.!?…。！？][\"')\]]*\s+|\n")


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """What one row of the model sees: token ids and which of them carry loss, both of shape [length]."""

    ids: NDArray[np.int32]
    loss: NDArray[np.bool_]

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def loss_tokens(self) -> int:
        """Tokens that are predicted and learnt; the first of a sequence has nothing before it."""
        return int(self.loss[1:].sum())


@dataclass(frozen=True, slots=True)
class Tokenised:
    """A sample's sequences, and what had to be done to make them fit."""

    sequences: list[TokenSequence]
    split: bool = False  # an answer was longer than the limit and is trained in parts
    cut_prompt: bool = False  # of a prompt only the last part fitted
    dropped_turns: int = 0  # whole turns of context, the oldest ones, that did not fit


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A conversation as text; `spans` are the character ranges that carry loss, in order."""

    text: str
    spans: list[tuple[int, int]]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model's folder, always with a chat template and a padding token.

    Raises BadSpec where the folder holds no tokenizer that can be loaded without running foreign code.
    """
    if not any((folder / name).is_file() for name in _VOCABULARIES):  # transformers would make an empty one
        raise BadSpec(f"the base model in {folder} has no usable tokenizer: it holds none of {_VOCABULARIES}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise BadSpec(f"the base model in {folder} has no usable tokenizer: {_first_line(error)}") from error
    if not tokenizer.chat_template:
        known = tokenizer.get_vocab()
        tokenizer.chat_template = next((t for token, t in _FAMILIES if token in known), _PLAIN)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def prompt_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """The conversation up to where the assistant begins to speak, without thinking aloud."""
    return _render(tokenizer, _harmless(tokenizer, messages), ask=True, enable_thinking=False)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of rendered text, nothing added: the template already wrote what belongs around it."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids that end an assistant's turn: the end-of-text token and what the template puts there."""
    turn = [Message(role="user", content="a"), Message(role="assistant", content="b", loss=True)]
    found = {tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()
    rendered = _render_last(tokenizer, turn, 1)
    ids, loss = _encode(tokenizer, rendered)
    special = _special(tokenizer)
    return found | {i for i, learnt in zip(ids, loss, strict=True) if learnt and i in special}


def tokenise(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], max_seq_length: int
) -> Tokenised:
    """Sequences of at most `max_seq_length` tokens that together carry each loss turn exactly once.

    One sequence where the turns fit and the template renders past turns as it rendered them when they
    were spoken; else one for each loss turn, with as many whole turns of context as fit, and several for
    an answer that is itself too long (each repeats the prompt). Raises BadSpec where the template cannot be followed.
    """
    messages = _harmless(tokenizer, messages)
    turns = [number for number, message in enumerate(messages) if message.loss and message.content.strip()]
    together = _render_together(tokenizer, messages, turns)
    if together is not None:
        ids, loss = _encode(tokenizer, together)
        if len(ids) <= max_seq_length:
            return Tokenised([_sequence(ids, loss)])
    sequences: list[TokenSequence] = []
    split = cut = False
    dropped = 0
    for turn in turns:
        for upto in _shorter_and_shorter(messages[: turn + 1]):
            rendered = _render_last(tokenizer, upto, len(upto) - 1)
            parts, was_cut = _fit(tokenizer, rendered, max_seq_length)
            if not was_cut:
                break
        sequences += parts
        dropped += turn + 1 - len(upto)
        split = split or len(parts) > 1
        cut = cut or was_cut
    return Tokenised(sequences, split, cut, dropped)


def _shorter_and_shorter(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """The conversation up to its last turn, then without its oldest turns, each time from another user turn on.
    System turns at its beginning stay."""
    yield messages
    first = next((n for n, message in enumerate(messages) if message.role != "system"), 0)
    for begin in range(first + 1, len(messages) - 1):
        if messages[begin].role == "user":
            yield [*messages[:first], *messages[begin:]]


def _harmless(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[Message]:
    """Turns in which a special token that somebody wrote down (`<|im_end|>`) is text and ends nothing.

    A space after its first character breaks it up; the memory itself stays as it is.
    """
    written = [token for token in _special(tokenizer).values() if len(token) > 1]
    clean = []
    for message in messages:
        content = message.content
        for token in written:
            if token in content:
                content = content.replace(token, f"{token[0]} {token[1:]}")
        clean.append(message if content is message.content else message.model_copy(update={"content": content}))
    return clean


# --- rendering -----------------------------------------------------------------------------------------


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, ask: bool, **extra: Any
) -> str:
    plain = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=ask, **extra)
    except Exception as error:  # a template is a program of its own and may raise anything
        raise BadSpec(f"the base model's chat template refuses these turns: {_first_line(error)}") from error
    return str(text)


def _render_together(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], turns: list[int]
) -> _Rendered | None:
    """All loss turns in one text, or None where the template renders one of them otherwise when it is past."""
    marked = _render_by_marks(tokenizer, messages, turns)
    if marked is not None:
        return marked
    last = _render_last(tokenizer, messages, turns[-1])
    spans = []
    for turn in turns[:-1]:
        alone = _render_last(tokenizer, messages, turn)
        if not last.text.startswith(alone.text[: alone.spans[0][1]]):
            return None
        spans += alone.spans
    return _Rendered(last.text, spans + last.spans)


def _render_by_marks(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], turns: list[int]
) -> _Rendered | None:
    """By the template's own `{% generation %}` marks, if it has one for each assistant turn."""
    template = tokenizer.get_chat_template()
    if not re.search(r"\{%-?\s*generation\s*-?%\}", template):
        return None
    upto = messages[: turns[-1] + 1]
    plain = [{"role": message.role, "content": message.content} for message in upto]
    texts, marks = render_jinja_template(
        [plain], chat_template=template, return_assistant_tokens_mask=True, **tokenizer.special_tokens_map
    )
    speaking = [number for number, message in enumerate(upto) if message.role == "assistant"]
    if len(marks[0]) != len(speaking):
        return None
    spans = {turn: (int(start), int(end)) for turn, (start, end) in zip(speaking, marks[0], strict=True)}
    return _Rendered(texts[0], [spans[turn] for turn in turns])


def _render_last(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], turn: int) -> _Rendered:
    """The conversation up to and with loss turn `turn`, which is then the newest one.

    What the template writes when it is asked to speak is the prompt; the loss begins after it. First
    without thinking (as this model will be asked), then with, for answers that think.
    """
    marked = _render_by_marks(tokenizer, messages[: turn + 1], [turn])
    if marked is not None:
        return marked
    full = _render(tokenizer, messages[: turn + 1], ask=False)
    for extra in ({"enable_thinking": False}, {}):
        prompt = _render(tokenizer, messages[:turn], ask=True, **extra)
        if full.startswith(prompt):
            if not full[len(prompt) :].strip():
                raise BadSpec("the base model's chat template leaves out an answer: it would be learnt by no token")
            return _Rendered(
                full, [(len(prompt), _end_of_turn(tokenizer, full, len(prompt), messages[turn]))]
            )
    raise BadSpec("the base model's chat template does not render an answer as a continuation of its prompt")


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, full: str, start: int, message: Message) -> int:
    """Where the loss ends: after the token that ends the turn, or with the text where none does."""
    content = message.content.strip()
    found = full.rfind(content, start)
    after = found + len(content) if found >= 0 else start
    ends = [
        full.find(token, after) + len(token)
        for token in _special(tokenizer).values()
        if full.find(token, after) >= 0
    ]
    return min(ends, default=len(full))


_SPECIAL: "weakref.WeakKeyDictionary[PreTrainedTokenizerBase, dict[int, str]]" = weakref.WeakKeyDictionary()


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The special tokens by id; asking the tokenizer anew for each turn would take longer than the turn."""
    if tokenizer not in _SPECIAL:
        marked = {number: str(t) for number, t in tokenizer.added_tokens_decoder.items() if t.special}
        named = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        _SPECIAL[tokenizer] = {**named, **marked}
    return _SPECIAL[tokenizer]


# --- tokens --------------------------------------------------------------------------------------------


def _encode(tokenizer: PreTrainedTokenizerBase, rendered: _Rendered) -> tuple[list[int], list[bool]]:
    """Ids and loss marks. In one go where no token lies across a border, else piece by piece."""
    if tokenizer.is_fast:
        encoded = tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
        loss = _marks(encoded["offset_mapping"], rendered.spans)
        if loss is not None:
            return list(encoded["input_ids"]), loss
    ids: list[int] = []
    marks: list[bool] = []
    for piece, learnt in _pieces(rendered):
        some = encode(tokenizer, piece)
        ids += some
        marks += [learnt] * len(some)
    return ids, marks


def _marks(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[bool] | None:
    """For each token whether it lies in a span; None where one lies across a border."""
    starts = [start for start, _ in spans]
    marks = []
    for left, right in offsets:
        number = bisect.bisect_right(starts, left) - 1
        inside = number >= 0 and left < spans[number][1]
        following = spans[number + 1][0] if number + 1 < len(spans) else None
        if (inside and right > spans[number][1]) or (following is not None and right > following):
            return None
        marks.append(inside)
    return marks


def _pieces(rendered: _Rendered) -> list[tuple[str, bool]]:
    pieces, at = [], 0
    for start, end in rendered.spans:
        pieces += [(rendered.text[at:start], False), (rendered.text[start:end], True)]
        at = end
    pieces.append((rendered.text[at:], False))
    return [(text, learnt) for text, learnt in pieces if text]


def _sequence(ids: list[int], loss: list[bool]) -> TokenSequence:
    return TokenSequence(np.asarray(ids, dtype=np.int32), np.asarray(loss, dtype=np.bool_))


# --- fitting -------------------------------------------------------------------------------------------


def _fit(
    tokenizer: PreTrainedTokenizerBase, rendered: _Rendered, limit: int
) -> tuple[list[TokenSequence], bool]:
    """Sequences of at most `limit` tokens for a text with one span at its end; whether its prompt was cut."""
    start, end = rendered.spans[-1]
    ids, loss = _encode(tokenizer, _Rendered(rendered.text[:end], [(start, end)]))
    begin = loss.index(True)
    prompt, answer = ids[:begin], ids[begin:]
    room = max(limit // 2, limit - len(answer))
    cut = len(prompt) > room
    if cut:
        keep = 1 if tokenizer.bos_token_id is not None and prompt[0] == tokenizer.bos_token_id else 0
        prompt = prompt[:keep] + prompt[len(prompt) - room + keep :]
    parts = _split(answer, _borders(tokenizer, rendered.text[start:end], answer), limit - len(prompt))
    return [_sequence(prompt + part, [False] * len(prompt) + [True] * len(part)) for part in parts], cut


def _borders(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> list[set[int]]:
    """Token numbers at which a paragraph begins, and those at which a sentence does."""
    if not tokenizer.is_fast:
        return []
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if list(encoded["input_ids"]) != ids:
        return []
    ends = [right for _, right in encoded["offset_mapping"]]
    found = []
    for pattern in (_PARAGRAPH, _SENTENCE):
        # A byte-level token takes the space before its word along, so the border is the first token that
        # ends behind the last character of the sentence.
        stops = (match.start() + len(match.group().rstrip()) for match in pattern.finditer(text))
        found.append({bisect.bisect_right(ends, stop) for stop in stops})
    return found


def _split(answer: list[int], borders: list[set[int]], room: int) -> list[list[int]]:
    """Cut at a paragraph, else a sentence, in the further half of the room; else where the room ends."""
    parts, at = [], 0
    while len(answer) - at > room:
        window = range(at + room, at + room // 2, -1)
        cut = next((p for kind in borders for p in window if p in kind), at + room)
        parts.append(answer[at:cut])
        at = cut
    return [*parts, answer[at:]]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
