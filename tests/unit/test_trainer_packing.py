"""Layouts hold each sequence once and compute what the padded form computes."""

import random
from collections.abc import Iterator

import pytest
import torch

from tests import jobs
from trainer.contract import Message
from trainer.packing import layout


@pytest.mark.parametrize("packing", [True, False])
def test_each_sequence_once_and_within_the_limits(packing: bool) -> None:
    draw = random.Random(5)
    for _ in range(200):
        lengths = [draw.randint(2, 300) for _ in range(draw.randint(1, 40))]
        longest, budget = max(lengths), draw.choice([16, 128, 512, 2048])
        batches = layout(lengths, packing=packing, max_seq_length=256, micro_batch_tokens=budget)
        assert sorted(n for batch in batches for row in batch.rows for n in row) == list(range(len(lengths)))
        for batch in batches:
            fills = [sum(lengths[n] for n in row) for row in batch.rows]
            assert batch.width == max(fills) <= max(256, longest)
            assert len(batch.rows) == 1 or len(batch.rows) * batch.width <= budget
            assert packing or all(len(row) == 1 for row in batch.rows)


def test_packing_wastes_little() -> None:
    draw = random.Random(6)
    lengths = [draw.randint(20, 200) for _ in range(64)]
    batches = layout(lengths, packing=True, max_seq_length=512, micro_batch_tokens=2048)
    assert sum(lengths) / sum(len(b.rows) * b.width for b in batches) > 0.9


def test_nothing_in_nothing_out() -> None:
    assert layout([], packing=True, max_seq_length=64, micro_batch_tokens=64) == []


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """The builtin model with a fresh adapter whose B is not zero, so that every gradient is alive."""
    from trainer import adapter, base_files, base_model

    base = base_model.load_model(base_files.resolve(jobs.TINY), torch.device("cpu"), torch.float32)
    adapted = adapter.add_adapter(base, jobs.recipe(lora_dropout=0.0), 1)
    torch.manual_seed(2)
    for parameter in adapter.trainable(adapted).values():
        torch.nn.init.normal_(parameter, std=0.05)
    return adapted


def _tokens() -> list:  # type: ignore[type-arg]
    from trainer import base_files
    from trainer.chat_tokens import load_tokenizer, tokenise

    tokenizer = load_tokenizer(base_files.resolve(jobs.TINY))
    messages = [[Message(**m) for m in s["messages"]] for s in jobs.some_samples(9)]
    return [tokenise(tokenizer, m, 128).sequences[0] for m in messages]


def _gradients(model: torch.nn.Module, sequences: list, packing: bool, budget: int):  # type: ignore[no-untyped-def,type-arg]
    from trainer import adapter
    from trainer.batches import LossHead, build

    head = LossHead(model)
    total = sum(s.loss_tokens for s in sequences)
    batches = layout(
        [s.length for s in sequences], packing=packing, max_seq_length=128, micro_batch_tokens=budget
    )
    model.zero_grad()
    for micro in batches:
        batch = build(micro, sequences, packing=packing, pad=0, device=torch.device("cpu"))
        (head.losses(batch).sum() / total).backward()
    return {name: p.grad.clone() for name, p in adapter.trainable(model).items()}, len(batches)


def test_packed_gradients_are_padded_gradients(model: torch.nn.Module) -> None:
    sequences = _tokens()
    padded, _ = _gradients(model, sequences, packing=False, budget=64)
    packed, _ = _gradients(model, sequences, packing=True, budget=4096)
    some, micro_batches = _gradients(model, sequences, packing=True, budget=128)
    assert micro_batches > 1
    for name, gradient in padded.items():
        scale = gradient.abs().max()
        assert scale > 0
        assert (packed[name] - gradient).abs().max() <= 1e-4 * scale
        assert (some[name] - gradient).abs().max() <= 1e-4 * scale


def test_samples_in_one_row_never_see_each_other(model: torch.nn.Module) -> None:
    from trainer.batches import LossHead, build, packs_cleanly
    from trainer.packing import MicroBatch

    head, cpu = LossHead(model), torch.device("cpu")
    sequences = _tokens()[:3]
    width = sum(s.length for s in sequences)
    with torch.no_grad():
        batch = build(MicroBatch(((2, 0, 1),), width + 5), sequences, packing=True, pad=0, device=cpu)
        together = head.logits(batch)
        for number, sequence in enumerate(sequences):
            alone = head.logits(
                build(MicroBatch(((0,),), sequence.length), [sequence], packing=True, pad=0, device=cpu)
            )
            mine = together[batch.owners == number]
            torch.testing.assert_close(mine, alone, rtol=0, atol=1e-5)
    assert packs_cleanly(model, head, cpu)


def test_a_model_that_mixes_samples_is_found_out() -> None:
    """A recurrent model has no mask to keep samples apart."""
    from transformers import AutoModelForCausalLM, MambaConfig

    from trainer.batches import LossHead, packs_cleanly

    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4)
    recurrent = AutoModelForCausalLM.from_config(config)
    assert not packs_cleanly(recurrent, LossHead(recurrent), torch.device("cpu"))


def test_the_quick_adapter_computes_what_peft_computes() -> None:
    from peft import LoraConfig, get_peft_model

    from trainer.adapter import quicken

    torch.manual_seed(3)
    block = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.Linear(24, 8))
    adapted = get_peft_model(
        block, LoraConfig(r=4, lora_alpha=12, target_modules=["0", "1"], init_lora_weights=False)
    )
    x = torch.randn(2, 5, 16)
    expected = adapted(x)
    expected.square().sum().backward()
    wanted = {n: p.grad.clone() for n, p in adapted.named_parameters() if p.grad is not None}
    adapted.zero_grad()
    quicken(adapted, 0.0)
    found = adapted(x)
    found.square().sum().backward()
    torch.testing.assert_close(found, expected)
    for name, parameter in adapted.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.grad, wanted[name])


def test_cheap_dropout_drops_its_share() -> None:
    from trainer.adapter import CheapDropout

    torch.manual_seed(4)
    kept = CheapDropout(0.05)(torch.ones(1000, 1001))
    assert abs(float((kept == 0).float().mean()) - 0.05) < 0.001
    assert abs(float(kept.mean()) - 1) < 0.001
    assert torch.equal(CheapDropout(0.3).eval()(kept), kept)
