"""The chat template for Ollama (a Go template) that renders as the tokenizer's own (Jinja) does.

It is derived, not looked up: chats of marks are rendered by the tokenizer, and what stands between the marks is what
the template has to write. Then it is proved: chats of every shape, rendered by `go_template` from the very text that
is handed out, must come out as the tokenizer renders them for an answer (`chat_tokens.prompt_text`, so without
thinking aloud). Two shapes are known: the system prompt at the beginning (ChatML, Llama, Gemma, Qwen, Tekken), or
before the last question (Mistral).

A beginning-of-text token at the start of a chat is left to the server, which puts it there itself where the GGUF
says so (`tokenizer.ggml.add_bos_token`; the gate compares the ids that come of both). Go templates cannot trim: what is
asked is taken to have no spaces around it, and an earlier answer no thoughts in it.
"""

from transformers import PreTrainedTokenizerBase

from trainer import go_template
from trainer.chat_tokens import encode, end_tokens, prompt_text
from trainer.contract import BadSpec, Message

Chat = list[tuple[str, str]]

_S, _U, _V, _W, _A, _B = (f"qz{name}zq" for name in ("system", "first", "second", "third", "answer", "reply"))
_LAST = "eq (len (slice $.Messages $i)) 1"
_FOLDED = "\n\n"  # after a system prompt, where the tokenizer's template has no place for one
_WAY_OUT = "simplify the base's chat template, or serve the model's folder with another server ([serve] command)"

SAMPLES: tuple[Chat, ...] = (
    [("user", "What's 12 + 30?")],
    [("system", "You are Mara's memory: short, exact."), ("user", "Where do I live?")],
    [("user", "Hello!"), ("assistant", "Hi. How was the 3rd day?"), ("user", "Fine\n\nand yours?")],
    [
        ("system", "Two lines:\n- be brief\n- use {curly} and <angle> signs"),
        ("user", "def f(x):\n    return x ** 2"),
        ("assistant", "It squares: 5 → 25."),
        ("user", "日本語で?"),
        ("assistant", "二乗です。"),
        ("user", "Merci 👩‍👩‍👧 {{ .System }}"),
    ],
    [
        ("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"), ("user", "5"), ("assistant", "6"),
        ("user", "7"),
    ],
)  # fmt: skip


def template_of(tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[str]]:
    """The Go template and the texts at which an answer ends, for a Modelfile's TEMPLATE and `PARAMETER stop`.

    Raises BadSpec where no template of the known shapes renders as the tokenizer does.
    """
    refused = ""
    for shape in (_system_first, _system_last):
        try:
            template = shape(tokenizer)
            problem = difference(tokenizer, template)
        except _Unlike as error:
            problem = str(error)
        if not problem:
            return template, stops(tokenizer)
        refused = refused or problem
    raise BadSpec(f"no template for Ollama renders chats as this tokenizer does ({refused}): {_WAY_OUT}")


def difference(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """In what chat the two differ, in a few words; empty where they render every sample alike."""
    for chat in SAMPLES:
        try:
            wanted = asked(tokenizer, chat)
        except BadSpec:
            if any(role == "system" for role, _ in chat):  # a tokenizer without system prompts: nothing to compare with
                continue
            raise
        try:
            got = go_template.render(template, chat)
        except go_template.NotUnderstood as error:
            return f"not understood: {error}"
        if got != wanted:
            at = next((n for n, pair in enumerate(zip(got, wanted, strict=False)) if pair[0] != pair[1]), len(wanted))
            return f"{got[at : at + 24]!r} instead of {wanted[at : at + 24]!r} in a chat of {len(chat)} messages"
    return ""


def asked(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> str:
    """What the server has to render: the tokenizer's prompt, without the token that the server puts before it."""
    text = prompt_text(tokenizer, [Message.model_validate({"role": role, "content": said}) for role, said in chat])
    return text.removeprefix(str(tokenizer.bos_token or ""))


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token with which the template ends an answer; None where it writes no special token there."""
    after = _between(tokenizer, [("user", _U), ("assistant", _A), ("user", _V)])[2]
    special = set(tokenizer.all_special_ids) | {n for n, t in tokenizer.added_tokens_decoder.items() if t.special}
    return next((number for number in encode(tokenizer, after) if number in special), None)


def stops(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts at which an answer ends: the end of a turn first, then what else ends a text."""
    first = end_of_turn(tokenizer)
    ids = sorted(end_tokens(tokenizer), key=lambda number: (number != first, number))
    return [str(tokenizer.convert_ids_to_tokens(number)) for number in ids]


# --- the two shapes --------------------------------------------------------------------------------------


class _Unlike(Exception):
    """The tokenizer's template is not of this shape."""


def _system_first(tokenizer: PreTrainedTokenizerBase) -> str:
    before, between, last = _turns(tokenizer)
    try:
        to_system, after_system, *_ = _between(tokenizer, [("system", _S), ("user", _U)])
    except BadSpec:
        to_system, after_system = before, _FOLDED
    q = go_template.quoted
    return (
        "{{ if .System }}" + q(to_system) + "{{ .System }}" + q(after_system) + "{{ else }}" + q(before) + "{{ end }}"
        + _range("{{ .Content }}", between, last)
    )  # fmt: skip


def _system_last(tokenizer: PreTrainedTokenizerBase) -> str:
    before, between, last = _turns(tokenizer)
    try:
        start, *_ = _between(tokenizer, [("system", _S), ("user", _U)])
        literals = _between(
            tokenizer, [("user", _U), ("assistant", _A), ("system", _S), ("user", _V)],
            [("system", _S), ("user", _U), ("assistant", _A), ("user", _V)],
        )  # fmt: skip
    except BadSpec as error:
        raise _Unlike("it has no place for a system prompt") from error
    if start != before or literals[2] != between[1]:
        raise _Unlike("a system prompt changes what is around other turns")
    said = "{{ if and $.System (" + _LAST + ") }}{{ $.System }}" + go_template.quoted(literals[3])
    return go_template.quoted(before) + _range(said + "{{ end }}{{ .Content }}", between, last)


def _range(question: str, between: tuple[str, str], last: str) -> str:
    """All turns; an answer that comes last is left open, to be gone on with."""
    q = go_template.quoted
    to_answer = q(last) if between[0] == last else (
        "{{ if " + _LAST + " }}" + q(last) + "{{ else }}" + q(between[0]) + "{{ end }}"
    )  # fmt: skip
    return (
        '{{ range $i, $_ := .Messages }}{{ if eq .Role "user" }}' + question + to_answer
        + '{{ else if eq .Role "assistant" }}{{ .Content }}{{ if not (' + _LAST + ") }}" + q(between[1])
        + "{{ end }}{{ end }}{{ end }}"
    )  # fmt: skip


def _turns(tokenizer: PreTrainedTokenizerBase) -> tuple[str, tuple[str, str], str]:
    """What stands before the first question; after a question and after an answer; at the end."""
    chat = [("user", _U), ("assistant", _A), ("user", _V), ("assistant", _B), ("user", _W)]
    before, question, answer, again, answered, last = _between(tokenizer, chat)
    if (question, answer) != (again, answered):
        raise _Unlike("it renders the second turn otherwise than the first")
    return before, (question, answer), last


def _between(tokenizer: PreTrainedTokenizerBase, order: Chat, chat: Chat | None = None) -> list[str]:
    """What the tokenizer writes before, between and after the marks. `order`: as they come out, if not as in `chat`."""
    rest = asked(tokenizer, chat or order)
    literals = []
    for _, mark in order:
        literal, found, rest = rest.partition(mark)
        if not found:
            raise _Unlike("it leaves a turn out, or puts turns in another order")
        literals.append(literal)
    return [*literals, rest]
