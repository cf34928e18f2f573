"""Stochastic gradient descent in Caffe's order, and learning rates per group of parameters.

Caffe keeps the learning rate inside the velocity:

    V <- momentum · V + lr · lr_factor · (gradient + weight_decay · decay_factor · w)
    w <- w - V

PyTorch multiplies the whole velocity by the current rate instead. The two agree while the rate is constant;
after a drop, Caffe's velocity still carries the old rate. Source: Caffe's `SGDSolver` (`sgd_solver.cpp`),
whose `lr_mult` and `decay_mult` are the two factors. With Nesterov's momentum the weights go one step further along
the new velocity (Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013; Caffe's
`NesterovSolver` writes the same as (1 + momentum) · V_new - momentum · V_old):

    w <- w - (momentum · V + lr · lr_factor · (gradient + weight_decay · decay_factor · w))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bessemer.errors import UsageError
from bessemer.training.sharding import share


@dataclass(frozen=True)
class Factor:
    """How much faster or slower some parameters learn and decay.

    match: a shell pattern over parameter names, such as `*.bias` or `conv1.*`. lr and decay multiply the
    learning rate and the weight decay.
    """

    match: str
    lr: float = 1.0
    decay: float = 1.0

    def __post_init__(self) -> None:
        _require_range(f"factor {self.match!r}: lr", self.lr)
        _require_range(f"factor {self.match!r}: decay", self.decay)


def parameter_groups(model: nn.Module, rules: Sequence[Factor]) -> list[dict[str, Any]]:
    """The model's parameters, grouped by their factors, as an optimizer takes them.

    Where several rules match a parameter, their factors multiply. Raises `UsageError` for a rule that matches
    nothing.
    """
    parameters = dict(model.named_parameters())
    for rule in rules:
        if not any(fnmatchcase(name, rule.match) for name in parameters):
            raise UsageError(
                f"factor {rule.match!r} matches none of the {len(parameters)} parameters, named like "
                f"{', '.join(list(parameters)[:4])}"
            )
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        matching = [rule for rule in rules if fnmatchcase(name, rule.match)]
        factors = math.prod(rule.lr for rule in matching), math.prod(rule.decay for rule in matching)
        groups.setdefault(factors, []).append(parameter)
    return [{"params": group, "lr_factor": lr, "decay_factor": decay} for (lr, decay), group in groups.items()]


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, in Caffe's order.

    params: tensors, or groups with their own `lr_factor` and `decay_factor` (see `parameter_groups`). `lr` is
    the rate before `lr_factor`: a schedule may set it in every group alike. nesterov: with Nesterov's momentum.
    Parameters without a gradient stay as they are, velocity included.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "lr_factor": 1.0,
            "decay_factor": 1.0,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            for setting in ("lr", "weight_decay", "lr_factor", "decay_factor"):
                _require_range(f"SGD: {setting}", group[setting])
            _require_range("SGD: momentum", group["momentum"], below=1)
            require_momentum(group["momentum"], group["nesterov"])

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update; `closure`, where given, computes loss and gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not weights:
                continue
            gradients = [weight.grad for weight in weights]
            velocities = [self._velocity(weight) for weight in weights]
            rate = group["lr"] * group["lr_factor"]
            decay = group["weight_decay"] * group["decay_factor"]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, gradients, alpha=rate)
            if decay:
                torch._foreach_add_(velocities, weights, alpha=rate * decay)
            moves = velocities
            if group["nesterov"]:
                moves = list(torch._foreach_mul(velocities, group["momentum"]))
                torch._foreach_add_(moves, gradients, alpha=rate)
                if decay:
                    torch._foreach_add_(moves, weights, alpha=rate * decay)
            torch._foreach_sub_(weights, moves)
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state, also one written before there was Nesterov's momentum."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("nesterov", False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the settings and velocities that `state_dict` returned."""
        super().load_state_dict(state_dict)
        # files keep no memory layout, and the fused operations want the velocity to lie as its weight does
        for weight, state in self.state.items():
            state["velocity"] = torch.empty_like(weight).copy_(share(weight, state["velocity"]))

    def _velocity(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if not state:
            state["velocity"] = torch.zeros_like(weight)
        return state["velocity"]


def require_momentum(momentum: float, nesterov: bool) -> None:
    """Refuse (`UsageError`) Nesterov's momentum where there is none."""
    if nesterov and not momentum:
        raise UsageError("nesterov is a kind of momentum, and momentum is 0; set one of them otherwise")


def _require_range(what: str, value: float, below: float = math.inf) -> None:
    if not 0 <= value < below:
        upper = "a finite number" if below == math.inf else f"below {below:g}"
        raise UsageError(f"{what} should be {upper} and not negative, found {value!r}")
