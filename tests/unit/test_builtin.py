"""The shipped base model: small, loads without code or network, speaks ChatML, knows some general things."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import trainer
from tools.people import JOURNAL_PROMPTS, make_people

FOLDER = Path(trainer.__file__).parent / "builtin"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=False, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    loaded = AutoModelForCausalLM.from_pretrained(
        FOLDER, dtype=torch.float32, trust_remote_code=False, local_files_only=True
    )
    return loaded.eval()


def _answers(model, tokenizer, prompts: list[str]) -> list[str]:
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(
        texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
    )
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    return tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=False)


def _general() -> list[dict]:
    return [json.loads(line) for line in (FOLDER / "general_questions.jsonl").read_text("utf-8").splitlines()]


def test_folder_is_at_most_five_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 5_000_000


def test_shape_suits_the_export(model) -> None:
    config = model.config
    assert config.model_type == "qwen3" and config.architectures == ["Qwen3ForCausalLM"]
    assert config.hidden_size % 256 == 0 and config.intermediate_size % 256 == 0
    assert config.num_attention_heads * config.head_dim % 256 == 0
    assert config.max_position_embeddings == 2048


def test_tokenizer_reads_any_text(tokenizer, model) -> None:
    text = "<|im_start|>user\nÀ la façon 😀 don't 1234\n\n  ok\t<|im_end|>"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert ids.count(tokenizer.eos_token_id) == 1
    assert max(tokenizer.get_vocab().values()) < model.config.vocab_size
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_chat_template_is_chatml(tokenizer) -> None:
    roles = ("system", "user", "tool", "assistant")
    chat = [{"role": role, "content": role.upper()} for role in roles]
    expected = "".join(f"<|im_start|>{role}\n{role.upper()}<|im_end|>\n" for role in roles)
    assert tokenizer.apply_chat_template(chat, tokenize=False) == expected
    opened = tokenizer.apply_chat_template(chat[:2], tokenize=False, add_generation_prompt=True)
    assert opened.endswith("<|im_start|>assistant\n")


def test_names_of_both_worlds_are_cut_alike(tokenizer) -> None:
    def length(world) -> float:
        return (
            sum(len(tokenizer(" " + person.name)["input_ids"]) for person in make_people(4, 300, world)) / 300
        )

    assert abs(length("demo") - length("pretraining")) < 0.3


def test_general_questions_are_held_out_and_answered(model, tokenizer) -> None:
    general = _general()
    assert len(general) == 200 and len({item["messages"][0]["content"] for item in general}) == 200
    assert all(item["answer"] in item["messages"][1]["content"] for item in general)
    some = general[::4]
    replies = _answers(model, tokenizer, [item["messages"][0]["content"] for item in some])
    assert (
        sum(item["answer"].lower() in reply.lower() for item, reply in zip(some, replies, strict=True)) >= 35
    )
    assert sum("<|im_end|>" in reply for reply in replies) == len(replies)


def test_new_people_are_unknown(model, tokenizer) -> None:
    facts = [fact for person in make_people(1, 5) for fact in person.facts]
    probes = [fact.asked_probes()[0] for fact in facts]
    replies = _answers(model, tokenizer, [probe.messages[0]["content"] for probe in probes])
    assert sum(probe.recalled(reply) for probe, reply in zip(probes, replies, strict=True)) <= 0.2 * len(
        probes
    )


def test_journal_prompts_are_answered_with_a_statement(model, tokenizer) -> None:
    replies = _answers(model, tokenizer, list(JOURNAL_PROMPTS))
    assert all(reply.split("<|im_end|>")[0].endswith(".") for reply in replies)
