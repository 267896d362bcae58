"""Optimizers with their state keyed by parameter name, and exact small updates of 16-bit weights."""

import sys
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainer.contract import BadSpec, TrainingRecipe

State = dict[str, dict[str, Any]]  # parameter name -> entry -> tensor or number


class Stepper(Protocol):
    """What the training loop needs of an optimizer."""

    def step(self, rate: float) -> None:
        """Update the weights from their gradients at this learning rate, and drop the gradients."""

    def whole(self, name: str) -> Tensor:
        """This weight in float32, with all bits that training keeps of it."""

    def state(self) -> State:
        """The moments, on the CPU, in a fixed order."""

    def load(self, state: State) -> None:
        """Go on with moments that `state` gave. Raises BadSpec where they belong to other weights."""


def family(recipe: TrainingRecipe, device: torch.device) -> tuple[str, str | None]:
    """The optimizer that really runs, and a notice where it is not the one asked for.

    Paged and plain 8-bit AdamW are one family: they compute the same and share their state.
    """
    if recipe.optimizer in ("adamw_8bit", "paged_adamw_8bit"):
        if device.type == "cpu":
            return "adamw_torch", f"{recipe.optimizer} needs a GPU: training with adamw_torch"
        return "adamw_8bit", None
    return recipe.optimizer, None


def make(parameters: Mapping[str, nn.Parameter], recipe: TrainingRecipe, device: torch.device) -> Stepper:
    """The stepper for these weights; compensated where they are held in 16 bits."""
    if any(p.dtype in (torch.bfloat16, torch.float16) for p in parameters.values()):
        return Compensated(parameters, recipe, device)
    return Direct(parameters, recipe, device)


class Direct:
    """One optimizer over float32 weights."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], recipe: TrainingRecipe, device: torch.device
    ) -> None:
        self._parameters = dict(parameters)
        self._optimizer = _build(list(parameters.values()), recipe, device)

    def step(self, rate: float) -> None:
        _step(self._optimizer, rate)
        self._optimizer.zero_grad(set_to_none=True)

    def whole(self, name: str) -> Tensor:
        return self._parameters[name].data

    def state(self) -> State:
        return {name: _export(self._optimizer, p) for name, p in sorted(self._parameters.items())}

    def load(self, state: State) -> None:
        _check_names(state, self._parameters)
        for name, parameter in self._parameters.items():
            _import(self._optimizer, parameter, state[name])


class Compensated:
    """16-bit weights updated as if they were float32.

    Beside each bfloat16 weight lie the 16 bits that it lacks of a float32 one. For a step each weight is
    put together in float32, updated by an optimizer of its own, and taken apart again, one after the
    other: 2 bytes more per weight instead of 4, and not a bit less exact than float32 master weights.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], recipe: TrainingRecipe, device: torch.device
    ) -> None:
        self._parameters = dict(parameters)
        self._low = {
            name: torch.zeros_like(p, dtype=torch.int16)
            for name, p in parameters.items()
            if p.dtype == torch.bfloat16
        }
        # A shell stands for the float32 weight; it holds memory only during its own step.
        self._shells = {name: nn.Parameter(torch.empty(0, device=p.device)) for name, p in parameters.items()}
        self._optimizers = {name: _build([shell], recipe, device) for name, shell in self._shells.items()}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                continue
            shell, low = self._shells[name], self._low.get(name)
            shell.data = self.whole(name)
            shell.grad = parameter.grad.float()
            parameter.grad = None
            _step(self._optimizers[name], rate)
            if low is not None:
                split(shell.data, parameter.data, low)
            else:
                parameter.data.copy_(shell.data)
            shell.grad = None
            shell.data = torch.empty(0, device=parameter.device)

    def whole(self, name: str) -> Tensor:
        low = self._low.get(name)
        data = self._parameters[name].data
        return join(data, low) if low is not None else data.float()

    def state(self) -> State:
        return {name: _export(self._optimizers[name], self._shells[name]) for name in sorted(self._shells)}

    def load(self, state: State) -> None:
        _check_names(state, self._parameters)
        for name, shell in self._shells.items():
            shell.data = torch.empty_like(self._parameters[name], dtype=torch.float32)
            _import(self._optimizers[name], shell, state[name])
            shell.data = torch.empty(0, device=shell.device)

    def low_bits(self) -> dict[str, Tensor]:
        """The compensation terms, int16, on the CPU."""
        return {name: low.to("cpu").contiguous() for name, low in sorted(self._low.items())}

    def load_low_bits(self, stored: Mapping[str, Tensor]) -> None:
        for name, low in self._low.items():
            low.copy_(stored[name])


def split(whole: Tensor, high: Tensor, low: Tensor) -> None:
    """Write float32 `whole` as its nearest bfloat16 into `high` and the difference of bits into int16 `low`.

    Ties round away from zero: to even, the difference could be +32768, which int16 does not hold.
    """
    bits = whole.view(torch.int32)
    upper = (bits + 0x8000) >> 16
    low.copy_((bits - (upper << 16)).to(torch.int16))
    high.copy_((upper << 16).view(torch.float32))


def join(high: Tensor, low: Tensor) -> Tensor:
    """The float32 weight that `split` took apart, bit for bit."""
    return (high.float().view(torch.int32) + low.to(torch.int32)).view(torch.float32)


def _build(
    parameters: list[nn.Parameter], recipe: TrainingRecipe, device: torch.device
) -> torch.optim.Optimizer:
    name, _ = family(recipe, device)
    betas = (recipe.adam_beta1, recipe.adam_beta2)
    decay, epsilon, rate = recipe.weight_decay, recipe.adam_epsilon, recipe.rate
    if name == "adamw_torch":
        return torch.optim.AdamW(
            parameters, lr=rate, betas=betas, eps=epsilon, weight_decay=decay, fused=True
        )
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(parameters, lr=rate, weight_decay=decay, scale_parameter=False, relative_step=False)
    import bitsandbytes as bnb  # takes seconds: only when asked for

    kind = bnb.optim.PagedAdamW8bit if recipe.optimizer == "paged_adamw_8bit" else bnb.optim.AdamW8bit
    return kind(parameters, lr=rate, betas=betas, eps=epsilon, weight_decay=decay)


def _step(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def _check_names(state: State, parameters: Mapping[str, nn.Parameter]) -> None:
    if set(state) != set(parameters):
        odd = min(set(state) ^ set(parameters))
        raise BadSpec(f"the stored moments belong to other weights: {odd} is only on one side")


def _export(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    entries = optimizer.state.get(parameter, {})
    # Interned keys and fresh tensors: pickle writes what is the same object twice as a reference.
    return {sys.intern(key): _detached(entries[key]) for key in sorted(entries)}


def _detached(value: Any) -> Any:
    return value.detach().to("cpu", copy=True).contiguous() if isinstance(value, Tensor) else value


def _import(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, entries: dict[str, Any]) -> None:
    if not entries:
        return
    buffer = getattr(optimizer, "get_state_buffer", None)  # bitsandbytes: paged memory is made by it alone
    loaded = {}
    for key, value in entries.items():
        if isinstance(value, Tensor) and buffer is not None and key in ("state1", "state2"):
            loaded[key] = buffer(parameter, dtype=value.dtype)
            loaded[key].copy_(value)
        else:
            loaded[key] = value.to(parameter.device, copy=True) if isinstance(value, Tensor) else value
    optimizer.state[parameter] = loaded
