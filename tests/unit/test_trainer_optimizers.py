"""Small updates of 16-bit weights are not lost, and moments survive by name."""

import pytest
import torch
from torch import Tensor, nn

from tests import jobs
from trainer.contract import BadSpec, TrainingRecipe
from trainer.optimizers import Compensated, Direct, family, join, make, split

CPU = torch.device("cpu")
RATE = 3e-5


def _recipe(optimizer: str = "adamw_torch") -> TrainingRecipe:
    return jobs.recipe(method="full", optimizer=optimizer, full_learning_rate=RATE)


def test_split_and_join_are_exact() -> None:
    torch.manual_seed(1)
    whole = torch.cat(
        [torch.randn(100_000), torch.randn(1000) * 1e-30, torch.randn(1000) * 1e30, torch.zeros(2)]
    )
    ties = (torch.randn(1000).view(torch.int32) & ~0xFFFF | 0x8000).view(torch.float32)
    whole = torch.cat([whole, ties, -ties, -torch.zeros(1)])
    high = torch.empty_like(whole, dtype=torch.bfloat16)
    low = torch.empty_like(whole, dtype=torch.int16)
    split(whole, high, low)
    assert torch.equal(join(high, low).view(torch.int32), whole.view(torch.int32))
    nearest = (high.float() - whole).abs() <= (whole.bfloat16().float() - whole).abs()
    assert bool(nearest.all())


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adafactor"])
def test_fifty_small_steps_in_bfloat16_equal_float32(optimizer: str) -> None:
    """Plain bfloat16 leaves most weights where they were; compensated they are the float32 ones, rounded."""
    torch.manual_seed(2)
    start = (torch.randn(64, 96) * 0.02).bfloat16()
    exact, held, plain = (
        nn.Parameter(start.clone().float()),
        nn.Parameter(start.clone()),
        nn.Parameter(start.clone()),
    )
    recipe = _recipe(optimizer)
    reference, compensated = make({"w": exact}, recipe, CPU), make({"w": held}, recipe, CPU)
    naive = torch.optim.AdamW([plain], lr=RATE, weight_decay=0.0)
    assert isinstance(reference, Direct) and isinstance(compensated, Compensated)
    direction = torch.randn(64, 96)
    for _ in range(50):
        gradient = (direction + torch.randn(64, 96)).bfloat16()
        exact.grad, held.grad, plain.grad = gradient.float(), gradient.clone(), gradient.clone()
        reference.step(RATE)
        compensated.step(RATE)
        naive.step()
    low = compensated.low_bits()["w"]
    assert torch.equal(join(held.data, low), exact.data)
    moved = (held.data != start).float().mean()
    stuck = (plain.data == start).float().mean()
    assert moved > 0.9 and stuck > 0.5


def test_moments_and_low_bits_survive_a_restart() -> None:
    def train(parameter: nn.Parameter, stepper: object, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            parameter.grad = torch.randn(parameter.shape).to(parameter.dtype)
            stepper.step(RATE)  # type: ignore[attr-defined]

    torch.manual_seed(3)
    start = (torch.randn(32, 8) * 0.02).bfloat16()
    whole, first = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    one, two = Compensated({"w": whole}, _recipe(), CPU), Compensated({"w": first}, _recipe(), CPU)
    train(whole, one, range(10))
    train(first, two, range(4))
    again = nn.Parameter(first.data.clone())
    resumed = Compensated({"w": again}, _recipe(), CPU)
    resumed.load(two.state())
    resumed.load_low_bits(two.low_bits())
    train(again, resumed, range(4, 10))
    assert torch.equal(again.data, whole.data)
    assert torch.equal(resumed.low_bits()["w"], one.low_bits()["w"])


def test_state_is_kept_by_name() -> None:
    def made(names: tuple[str, ...]) -> tuple[dict[str, nn.Parameter], Direct]:
        parameters = {name: nn.Parameter(torch.ones(4) * len(name)) for name in names}
        return parameters, Direct(parameters, _recipe(), CPU)

    parameters, stepper = made(("a", "bb"))
    for name, parameter in parameters.items():
        parameter.grad = torch.full((4,), float(len(name)))
    stepper.step(RATE)
    _, turned = made(("bb", "a"))
    turned.load(stepper.state())
    left, right = stepper.state(), turned.state()
    assert list(left) == list(right) == ["a", "bb"]
    for name in left:
        for key, value in left[name].items():
            assert isinstance(value, Tensor) and torch.equal(value, right[name][key])
    _, other = made(("a", "c"))
    with pytest.raises(BadSpec, match="bb is only on one side"):
        other.load(stepper.state())


def test_a_cpu_falls_back_with_one_sentence() -> None:
    for asked in ("adamw_8bit", "paged_adamw_8bit"):
        name, notice = family(_recipe(asked), CPU)
        assert name == "adamw_torch" and notice == f"{asked} needs a GPU: training with adamw_torch"
        assert family(_recipe(asked), torch.device("cuda")) == ("adamw_8bit", None)
