"""The Go template for Ollama renders what the tokenizer's own template renders; what cannot be rendered is refused."""

import pytest
from transformers import PreTrainedTokenizerBase

from tests import jobs, tiny_models
from trainer import base_files, go_template, ollama_template
from trainer.chat_tokens import load_tokenizer, prompt_text
from trainer.contract import BadSpec, Message

CHAT = [
    ("system", "You are brief."),
    ("user", 'Say "hi" {{ twice }}'),
    ("assistant", "hi hi"),
    ("user", "again, with <b>tags</b>\n\nand lines"),
]
# As Qwen3 has it: an answer that is asked for without thinking begins with an empty thought, a past one does not.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# As Qwen2.5 and Llama 3.1 have it: a system prompt of its own where there is none.
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COUNTING = (
    "{% for m in messages %}<|im_start|>{{ loop.index }} {{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHOUTING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | upper }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(base_files.resolve(jobs.TINY))


def _asked(tokenizer: PreTrainedTokenizerBase, chat: list[tuple[str, str]]) -> str:
    return prompt_text(tokenizer, [Message.model_validate({"role": role, "content": said}) for role, said in chat])


@pytest.mark.parametrize("family", list(tiny_models.FAMILIES))
def test_every_family_has_a_template_that_renders_as_its_tokenizer_does(family: str) -> None:
    tokenizer = tiny_models.FAMILIES[family].tokenizer()
    template, stops = ollama_template.template_of(tokenizer)
    for chat in (CHAT, CHAT[1:], CHAT[:2], CHAT[1:2]):
        wanted = _asked(tokenizer, chat).removeprefix(tokenizer.bos_token or "")
        assert go_template.render(template, chat) == wanted
    assert stops[0] == tokenizer.convert_ids_to_tokens(ollama_template.end_of_turn(tokenizer))
    assert '"""' not in template  # a Modelfile's quotes


def test_the_builtin_model(tokenizer: PreTrainedTokenizerBase) -> None:
    template, stops = ollama_template.template_of(tokenizer)
    assert stops == ["<|im_end|>"]
    assert go_template.render(template, [("user", "Hi")]) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert go_template.render(template, CHAT) == _asked(tokenizer, CHAT)


def test_an_answer_that_comes_last_is_left_open(tokenizer: PreTrainedTokenizerBase) -> None:
    template, _ = ollama_template.template_of(tokenizer)
    assert go_template.render(template, [("user", "Hi"), ("assistant", "Well,")]).endswith("assistant\nWell,")


def test_a_thinking_model_is_asked_as_it_was_trained(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = THINKING
    template, _ = ollama_template.template_of(tokenizer)
    rendered = go_template.render(template, CHAT)
    assert rendered == _asked(tokenizer, CHAT)
    assert rendered.endswith("assistant\n<think>\n\n</think>\n\n")
    assert rendered.count("<think>") == 1


@pytest.mark.parametrize("chat", [CHAT, CHAT[1:], CHAT[1:2]])
def test_a_system_prompt_that_the_template_brings_itself(
    tokenizer: PreTrainedTokenizerBase, chat: list[tuple[str, str]]
) -> None:
    tokenizer.chat_template = DEFAULT_SYSTEM
    template, _ = ollama_template.template_of(tokenizer)
    assert go_template.render(template, chat) == _asked(tokenizer, chat)


def test_without_a_place_for_a_system_prompt_it_goes_before_the_first_question(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.chat_template = NO_SYSTEM
    template, _ = ollama_template.template_of(tokenizer)
    assert go_template.render(template, CHAT[1:]) == _asked(tokenizer, CHAT[1:])
    assert go_template.render(template, CHAT[:2]).startswith("<|im_start|>user\nYou are brief.\n\nSay")


@pytest.mark.parametrize("source", [COUNTING, SHOUTING])
def test_what_no_go_template_renders_is_refused_with_the_way_out(
    tokenizer: PreTrainedTokenizerBase, source: str
) -> None:
    tokenizer.chat_template = source
    with pytest.raises(BadSpec, match=r"no template for Ollama renders chats as this tokenizer does .* another server"):
        ollama_template.template_of(tokenizer)


def test_a_template_that_differs_is_told_where(tokenizer: PreTrainedTokenizerBase) -> None:
    template, _ = ollama_template.template_of(tokenizer)
    assert ollama_template.difference(tokenizer, template) == ""
    assert "messages" in ollama_template.difference(tokenizer, template.replace("assistant\n", "model\n"))
    assert "not understood" in ollama_template.difference(tokenizer, template + "{{ .Tools }}")


def test_signs_that_go_would_misread_are_quoted(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = THINKING.replace("<think>", '{{ \'{{"x"\' }}')
    template, _ = ollama_template.template_of(tokenizer)
    assert go_template.render(template, CHAT) == _asked(tokenizer, CHAT)
    assert '"x"' not in template


# --- the evaluator ---------------------------------------------------------------------------------------


def test_neighbours_of_one_role_are_put_together_as_ollama_does() -> None:
    system, together = go_template.collate([("system", "a"), ("user", "b"), ("user", "c"), ("system", "d")])
    assert system == "a\n\nd"
    assert together == [("system", "a"), ("user", "b\n\nc"), ("system", "d")]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("  {{- if .System }} S{{ else if .Messages }} M {{- else }}N{{ end -}}  !", " M!"),
        ('{{ if and .System (eq 1 1) }}a{{ else }}{{ "b\\n\\x22" }}{{ end }}', 'b\n"'),
        ("{{ range $i, $m := .Messages }}{{ if not (eq $i 0) }}, {{ end }}{{ $m.Content }}{{ end }}", "x, y"),
        ('{{ range $i, $_ := .Messages }}{{ if or (eq .Role "") (eq $i 0) }}{{ .Role }}{{ end }}{{ end }}', "user"),
    ],
)  # fmt: skip
def test_the_language(template: str, said: str) -> None:
    assert go_template.render(template, [("user", "x"), ("assistant", "y")]) == said


@pytest.mark.parametrize(
    "template",
    [
        "{{ .Tools }}", "{{ if .System }}", "{{ end }}", "{{ with .System }}{{ end }}", "{{ .System", "{{ $x }}",
        "{{ range .Messages }}{{ end }}", "{{ .Messages }}", "{{ .System | upper }}", "{{ eq 1 (len .Messages }}",
    ],
)  # fmt: skip
def test_what_is_not_understood_is_an_error(template: str) -> None:
    with pytest.raises(go_template.NotUnderstood):
        go_template.render(template, [("user", "x")])
