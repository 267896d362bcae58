"""The next job: pure decisions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.rules import planning, promotion
from daemon.rules.planning import WaitingBatch
from trainer.contract import JobResult, TrainingRecipe
from trainer.names import ExitCode


def test_fresh_batches_go_together_and_a_failed_one_alone() -> None:
    waiting = [WaitingBatch(1, 1, 5), WaitingBatch(2, 0, 3), WaitingBatch(3, 0, 4), WaitingBatch(4, 0, 9)]
    choose = planning.choose_batches
    both = choose(waiting, max_batches=2, max_memories=100)
    assert both.batches == (2, 3) and both.memories == 7
    few = choose(waiting, max_batches=10, max_memories=5)
    assert few.batches == (2, 3) and few.memories == 5
    alone = choose(waiting[:1], max_batches=10, max_memories=100)
    assert alone.batches == (1,)


@given(st.integers(1, 60), st.integers(1, 4), st.integers(0, 2**63 - 1))
def test_each_epoch_holds_each_sample_once(samples: int, epochs: int, seed: int) -> None:
    order = planning.segments(samples, epochs, seed)
    assert len(order) == epochs
    assert all(sorted(segment) == list(range(samples)) for segment in order)
    assert order == planning.segments(samples, epochs, seed)


def test_the_order_depends_on_the_seed_and_is_fixed_for_ever() -> None:
    assert planning.segments(20, 1, 1) != planning.segments(20, 1, 2)
    assert planning.segments(8, 2, 7) == [[7, 4, 3, 5, 1, 2, 0, 6], [4, 1, 2, 5, 3, 7, 6, 0]]


def test_the_seed_is_that_of_parent_and_memories() -> None:
    seeds = {
        planning.job_seed(0, "me", None, ["a", "b"]),
        planning.job_seed(0, "me", None, ["b", "a"]),
        planning.job_seed(0, "me", "p", ["a", "b"]),
        planning.job_seed(1, "me", None, ["a", "b"]),
        planning.job_seed(0, "ada", None, ["a", "b"]),
    }
    assert len(seeds) == 5 and all(0 <= seed < 2**63 for seed in seeds)


@given(st.lists(st.integers(1, 50), max_size=5), st.lists(st.integers(1, 50), max_size=5), st.integers(1, 9))
def test_steps_add_up_over_jobs(first: list[int], second: list[int], per_step: int) -> None:
    recipe = TrainingRecipe(gradient_accumulation_steps=per_step)
    assert planning.steps(recipe, first + second) == planning.steps(recipe, first) + planning.steps(recipe, second)


def test_what_starts_a_new_chain() -> None:
    _, old = planning.chain_key(TrainingRecipe(), "f")
    same = TrainingRecipe(learning_rate=1e-4, num_train_epochs=9, save_steps=7, optimizer="adamw_8bit")
    assert planning.why_new_chain(old, planning.chain_key(same, "f")[1]) is None
    for change in ({"lora_rank": 4}, {"method": "full"}, {"base_model": "x"}, {"optimizer": "adafactor"},
                   {"load_in_4bit": False}, {"dtype": "float32"}):  # fmt: skip
        assert planning.why_new_chain(old, planning.chain_key(TrainingRecipe(**change), "f")[1])
    assert "base_fingerprint" in str(planning.why_new_chain(old, planning.chain_key(TrainingRecipe(), "g")[1]))
    assert planning.why_new_chain(None, old)


def test_held_out_is_decided_by_the_id() -> None:
    ids = [f"{n * 2654435761 % 2**32:08x}" + "0" * 56 for n in range(10_000)]
    share = sum(planning.is_held_out(i, 2.0, enough=True) for i in ids) / len(ids)
    assert 0.015 < share < 0.025
    assert not any(planning.is_held_out(i, 2.0, enough=False) for i in ids)


def test_smaller_layouts_end() -> None:
    layout: tuple[int, bool] | None = (2048, False)
    seen = []
    while layout:
        seen.append(layout)
        layout = planning.smaller_layout(*layout, longest=300)
    assert seen == [(2048, False), (1024, False), (512, False), (300, False), (300, True)]


@pytest.mark.parametrize(
    ("change", "promoted"),
    [({}, True), ({"steps": 3}, False), ({"samples_seen": 9}, False), ({"last_loss": None}, False)],
)
def test_the_verdict(change: dict[str, float], promoted: bool) -> None:
    result = JobResult(**({"exit_code": ExitCode.DONE, "steps": 4, "samples_seen": 10, "last_loss": 1.0} | change))
    verdict = promotion.decide(result, planned_steps=4, planned_samples=10)
    assert verdict.promoted is promoted and verdict.reason
