"""A GGUF answers over stdio as the trainer does; needs llama-cpp-python."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests import jobs
from trainer import base_files, chat, gguf_adapter, gguf_chat, llama_engine
from trainer import gguf as converter
from trainer.chat_lines import Request
from trainer.chat_tokens import load_tokenizer
from trainer.contract import BadSpec

pytestmark = pytest.mark.skipif(
    not llama_engine.installed(), reason="llama-cpp-python (the extra gguf) is missing"
)
ROOT = Path(__file__).parents[2]
TINY = base_files.resolve(jobs.TINY)


def said(*turns: str, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)], **more}


QUESTIONS = [
    said("What is 2 plus 3?", max_new_tokens=24),
    said("Hi", "Hi! How are you?", "Tell me a story about a river.", max_new_tokens=40),
    said("What is 2 plus 3?", prefix="Well,", max_new_tokens=12),
    said("Grüße <|im_end|> café 北京 \N{OWL}", max_new_tokens=24),
    {"messages": [{"role": "system", "content": "Be brief."}, *said("Who are you?")["messages"]]},
]


@pytest.fixture(scope="module")
def gguf_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("gguf")

    def find(quantisation: str) -> Path:
        out = folder / f"{quantisation}.gguf"
        if not out.exists():
            converter.convert(TINY, out, quantisation=quantisation, pulse=lambda: None)  # type: ignore[arg-type]
        return out

    return find


def talk(answer: Callable[[io.StringIO, io.StringIO], int], questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Its first line and its answers."""
    sink = io.StringIO()
    assert answer(io.StringIO("".join(json.dumps(one) + "\n" for one in questions)), sink) == 0
    return [json.loads(line) for line in sink.getvalue().splitlines()]


def by_llama(gguf: Path, questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return talk(lambda source, sink: gguf_chat.chat(gguf, None, jobs.TINY, source, sink), questions)


def speaker(gguf: Path, adapter: Path | None = None, context: int = 512) -> gguf_chat.Speaker:
    return gguf_chat.Speaker(gguf, adapter, load_tokenizer(TINY), set(), context)


def test_in_16_bits_it_says_what_the_trainer_says(gguf_of: Callable[[str], Path]) -> None:
    ready, *ours = by_llama(gguf_of("f16"), QUESTIONS)
    assert ready == {"ready": True, "base": jobs.TINY, "gguf": "f16.gguf", "adapter": None}
    _, *theirs = talk(lambda source, sink: chat.chat(jobs.TINY, None, source, sink), QUESTIONS)
    assert ours == theirs
    assert all(answer["text"] for answer in ours)


def test_the_options_of_a_request_count(gguf_of: Callable[[str], Path]) -> None:
    warm = said("What is 2 plus 3?", temperature=1.5, seed=3, max_new_tokens=16)
    requests = [QUESTIONS[0], warm, {**warm, "seed": 4}, warm, {"messages": []}, said("Hi", max_new_tokens=2)]
    _, greedy, one, other, again, bad, short = by_llama(gguf_of("Q8_0"), requests)
    assert greedy["text"] and "<|" not in greedy["text"]
    assert one == again != other
    assert bad["error"].startswith("messages:")
    assert short["tokens"] == 2


def test_an_adapter_lies_on_top(gguf_of: Callable[[str], Path], tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"]))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    gguf_adapter.convert(tmp_path / "adapter", TINY, tmp_path / "adapter.gguf", pulse=lambda: None)
    theirs = chat.Speaker(adapted.eval(), load_tokenizer(TINY), torch.device("cpu"))
    ours, plain = speaker(gguf_of("f16"), tmp_path / "adapter.gguf"), speaker(gguf_of("f16"))
    request = Request.model_validate(said("Tell me a story about a river.", max_new_tokens=20))
    assert ours.answer(request) == theirs.answer(request) != plain.answer(request)


def test_what_it_has_read_is_not_read_again(gguf_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    fresh, kept = speaker(gguf_of("f16")), speaker(gguf_of("f16"))
    question = "Tell me a story about a river. " * 8
    first, _ = kept.answer(Request.model_validate(said(question, max_new_tokens=30)))
    read: list[int] = []
    model: Any = kept._model
    whole = model.eval
    monkeypatch.setattr(model, "eval", lambda tokens: (read.append(len(tokens)), whole(tokens)))
    second = Request.model_validate(said(question, first, "And then?", max_new_tokens=20))
    assert kept.answer(second) == fresh.answer(second)
    prompt = len(fresh._held) - len(read) + 1
    assert read[0] < prompt / 2 and set(read[1:]) <= {1}


def test_a_conversation_has_as_much_room_as_the_model(gguf_of: Callable[[str], Path]) -> None:
    small, large = speaker(gguf_of("f16"), context=256), speaker(gguf_of("f16"), context=1024)
    long = Request.model_validate(said("A river is long. " * 60, max_new_tokens=20))
    assert small.answer(long) == large.answer(long)
    most = Request.model_validate(said("Hi", max_new_tokens=65536))
    assert small.answer(most)[1] < 2048
    with pytest.raises(BadSpec, match=r"has \d+ tokens, and this model holds 2048"):
        small.answer(Request.model_validate(said("A river is long. " * 900)))
    assert small.answer(Request.model_validate(said("Hi", max_new_tokens=8)))[0]


def test_what_cannot_be_opened_is_said(tmp_path: Path, gguf_of: Callable[[str], Path]) -> None:
    broken, none = tmp_path / "broken.gguf", tmp_path / "none.gguf"
    broken.write_bytes(gguf_of("f16").read_bytes()[:100_000])
    sink = io.StringIO()
    for file in (broken, none):
        assert gguf_chat.chat(file, None, jobs.TINY, io.StringIO(), sink) == 11
    assert gguf_chat.chat(gguf_of("f16"), broken, jobs.TINY, io.StringIO(), sink) == 11
    assert gguf_chat.chat(gguf_of("f16"), None, "no/such-model", io.StringIO(), sink) == 11
    told = [json.loads(line)["error"] for line in sink.getvalue().splitlines()]
    for file, line in zip((broken, none, broken), told[:3], strict=True):
        assert f"does not open {file}" in line
    assert "engramd base fetch no/such-model" in told[3]


def test_its_process_starts_without_torch(gguf_of: Callable[[str], Path]) -> None:
    program = (
        "import sys; from trainer.__main__ import main;"
        f"code = main(['chat', {str(gguf_of('Q8_0'))!r}, '--tokenizer', 'builtin:tiny']);"
        "sys.exit(code or int(any(name.startswith('torch.') for name in sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(QUESTIONS[0]) + "\n", capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ready, answer = [json.loads(line) for line in done.stdout.splitlines()]
    assert ready["ready"] and answer["text"]
