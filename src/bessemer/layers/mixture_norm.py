"""Mixture batch norm: clean and adversarial images share every weight but those of batch norm.

Their features follow two distributions, and one batch norm estimates the statistics of the mixture, which fit neither.
So each batch norm gets one branch per kind of image, and each kind goes through its own (C. Xie and A. Yuille,
"Intriguing properties of adversarial training at scale", ICLR 2020, arXiv:1906.03787):

    model = mixture_norm(model)
    logits = route(model, {"clean": 128, "adversarial": 128})(torch.cat([images, adversarial]))
    robust = route(model, "adversarial")          # a callable like any model: attack it, evaluate it
    keep_branch(model, "adversarial")             # ordinary batch norms again

A branch has two parts, which can be separated by themselves (C. Zhang et al., 2024, arXiv:2403.19150, find that the
affine part does most of the work):

- *statistics*: the mean and variance a batch is normalised by, and their running estimates. Shared, a joint batch is
  normalised as one batch, and there is one pair of running estimates.
- *affine*: gamma and beta. Shared, there is one of each, which learns from all branches.

Where exactly one of the two is separate, batch norm and affine map are two steps instead of PyTorch's one, and training
keeps one more activation per layer.

The route is a state of the converted model, which its layers read; `route` puts it in place for one forward pass and
puts back what was there. Two threads must not call one model at a time through different routes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bessemer.errors import UsageError, unknown
from bessemer.layers.batch_norms import batch_norms, replaced
from bessemer.layers.synchronized_norm import SynchronizedBatchNorm

# forward passes that end with gamma and beta
SEPARABLE = {kind.forward for kind in (_BatchNorm, nn.SyncBatchNorm, SynchronizedBatchNorm)}

Parts = tuple[tuple[str, int], ...]  # consecutive parts of a batch: each one's branch and how many images it has


@dataclass(eq=False)
class Routing:
    """What the mixture layers of one model share: its branches, and the route in force."""

    branches: tuple[str, ...]
    route: str | Parts | None = None


class MixtureBatchNorm(nn.Module):
    """One batch norm with several branches, of which the route in force says who goes through which.

    norms: an ordinary batch norm per branch, each a copy of the one given; with shared statistics only one, `every`.
    affines: only where exactly one part of a branch is separate: gamma and beta per branch, or a single pair, `every`;
    the batch norms then have none. See the module's text for `statistics` and `affine`.

    Raises `UsageError` in a forward pass without a route, or whose batch is not as large as the route's parts together.
    """

    def __init__(self, norm: _BatchNorm, routing: Routing, statistics: bool = True, affine: bool = True) -> None:
        super().__init__()
        self.routing, self.statistics, self.affine = routing, statistics, affine
        self.norms, self.affines = nn.ModuleDict(), nn.ModuleDict()
        if norm.weight is not None and statistics != affine:
            for name in self._places(affine):
                self.affines[name] = _Affine(norm)
        for name in self._places(statistics):
            self.norms[name] = copied = deepcopy(norm)
            if self.affines:
                copied.affine, copied.weight, copied.bias = False, None, None  # type: ignore[assignment]
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """The batch, or each of its parts, normalised by its own branch."""
        found = self.routing.route
        if found is None:
            raise UsageError(
                "a mixture batch norm was called without a route: call the model through one, as in "
                f"route(model, {self.routing.branches[0]!r})(images)"
            )
        if not isinstance(found, str):
            _check_sizes(found, x)
        y = _through(self.norms, found, x)
        return _through(self.affines, found, y) if self.affines else y

    def branch(self, name: str) -> _BatchNorm:
        """The ordinary batch norm that does what this branch does, taken out of the mixture, whose last use this is."""
        kept: Any = self.norms[name if self.statistics else "every"]
        if self.affines:
            affine = self.affines[name if self.affine else "every"]
            kept.weight, kept.bias, kept.affine = affine.weight, affine.bias, True
        return kept

    def extra_repr(self) -> str:
        """What the branches are, and what they share."""
        shared = [name for name in ("statistics", "affine") if not getattr(self, name)]
        return ", ".join([*self.routing.branches, *(f"{name}=False" for name in shared)])

    def _places(self, separate: bool) -> tuple[str, ...]:
        return self.routing.branches if separate else ("every",)


class _Affine(nn.Module):
    """gamma x + beta, channel by channel."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.weight, self.bias = deepcopy(norm.weight), deepcopy(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.dim() - 2))
        # in the type of x, as batch norm answers, also where that is half precision
        y = x * self.weight.to(x.dtype).view(shape)
        return y if self.bias is None else y + self.bias.to(x.dtype).view(shape)


def _through(branches: nn.ModuleDict, found: str | Parts, x: Tensor) -> Tensor:
    """A batch through one branch, or each part through its own; all of it at once where there is one for everyone."""
    if "every" in branches:
        return branches["every"](x)
    if isinstance(found, str):
        return branches[found](x)
    parts = x.split([size for _, size in found])
    return torch.cat([branches[name](part) for (name, _), part in zip(found, parts, strict=True)])


def _check_sizes(parts: Parts, x: Tensor) -> None:
    if x.shape[0] != sum(size for _, size in parts):
        said = " + ".join(f"{size} {name}" for name, size in parts)
        raise UsageError(
            f"the parts of the route, {said}, should add up to the batch, which has {x.shape[0]} rows; make a route "
            "with the sizes of this batch"
        )


class Routed(nn.Module):
    """A model seen through one of its routes: shares all its parameters and buffers, and its state is the model's own.

    Made by `route`. It puts the route in force, calls the model, and puts back the route that was in force before, also
    after an error.
    """

    def __init__(self, model: nn.Module, routings: Sequence[Routing], branch: str | Parts) -> None:
        super().__init__()
        self.model, self.branch = model, branch
        self.routings = tuple(routings)
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """The model's answer on this route."""
        if not isinstance(self.branch, str):
            _check_sizes(self.branch, images)
        with in_force(dict.fromkeys(self.routings, self.branch)):
            return self.model(images)

    def state_dict(self, *args: Any, **named: Any) -> dict[str, Any]:  # type: ignore[override]
        """The model's own, whichever the route."""
        return self.model.state_dict(*args, **named)

    def load_state_dict(self, *args: Any, **named: Any) -> Any:
        """Into the model, which all routes share."""
        return self.model.load_state_dict(*args, **named)

    def extra_repr(self) -> str:
        """The route."""
        return repr(self.branch)


def mixture_norm(
    model: nn.Module,
    branches: Sequence[str] = ("clean", "adversarial"),
    statistics: bool = True,
    affine: bool = True,
) -> nn.Module:
    """Turn every batch norm of a model into a mixture, in place; each branch starts as a copy of what was there.

    branches: their names, two or more. statistics, affine: which part of a batch norm each branch has for itself; see
    the module's text. With neither, routes exist but do not differ.

    Returns the model, or what stands in its place where it is itself a batch norm. A batch norm that is used in several
    places becomes one mixture in the same places. Convert before the optimizer is made: the parameters of the batch
    norms are new ones.

    Raises `UsageError` where there is no batch norm, one has no sizes yet, or the model is converted already; and for
    fewer than two branches, or names that cannot be.
    """
    _check_names(branches)
    if any(isinstance(module, MixtureBatchNorm) for module in model.modules()):
        raise UsageError("the model has mixture batch norms already; turn it back with keep_branch first")
    for norm in batch_norms(model, "a mixture"):
        if statistics != affine and type(norm).forward not in SEPARABLE:
            raise UsageError(
                f"{type(norm).__name__} has a forward pass of its own, so its affine part cannot be set apart; "
                "convert with statistics=True and affine=True"
            )
    routing = Routing(tuple(branches))
    return replaced(model, _BatchNorm, lambda norm: MixtureBatchNorm(norm, routing, statistics, affine))


def route(model: nn.Module, branch: str | Mapping[str, int]) -> Routed:
    """The model through one branch of all its mixture layers; or, jointly, parts of each batch through their own.

    branch: a branch's name; or an ordered mapping from names to sizes, for batches of consecutive parts of these sizes:
    one forward pass, in which each part is normalised by its own branch.

    The view is an `nn.Module` around the same model, cheap to make and meant to be thrown away; save, compile and
    distribute the model itself. Views nest: the innermost counts. DistributedDataParallel expects a forward pass to
    reach every parameter, so train through a joint route there.

    Raises `UsageError` where the model has no mixture layers, for a branch it does not have or a part without images;
    and in the forward pass, where the parts do not add up to the batch.
    """
    routings = _routings(model)
    if not routings:
        raise UsageError("the model has no mixture batch norm, so it has no routes; convert it with mixture_norm first")
    names = [branch] if isinstance(branch, str) else list(branch)
    for name in names:
        for routing in routings:
            if name not in routing.branches:
                raise unknown("branch", name, routing.branches)
    if isinstance(branch, str):
        return Routed(model, routings, branch)
    for name, size in branch.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UsageError(f"the part of branch {name!r} should have 1 image or more, not {size!r}")
    if not names:
        raise UsageError(f"a joint route needs a part for one branch at least, of {', '.join(branches(model))}")
    return Routed(model, routings, tuple(branch.items()))


def branches(model: nn.Module) -> tuple[str, ...]:
    """The names of the branches that every mixture layer of the model has; none where there are no such layers."""
    routings = _routings(model)
    return tuple(
        name for name in (routings[0].branches if routings else ()) if all(name in each.branches for each in routings)
    )


def keep_branch(model: nn.Module, branch: str) -> nn.Module:
    """Turn every mixture into the ordinary batch norm that its branch is, in place, and drop the other branches.

    Returns the model, or the batch norm where the model is itself a mixture. Raises `UsageError` where there are no
    mixture layers, or no such branch.
    """
    route(model, branch)  # the same two questions
    return replaced(model, MixtureBatchNorm, lambda mixture: mixture.branch(branch))


@contextmanager
def in_force(routes: Mapping[Routing, str | Parts | None]) -> Iterator[None]:
    """Routes put in force until the end of the block, as they were at another time."""
    before = {routing: routing.route for routing in routes}
    try:
        for routing, found in routes.items():
            routing.route = found
        yield
    finally:
        for routing, found in before.items():
            routing.route = found


def routes_in_force(model: nn.Module) -> dict[Routing, str | Parts | None]:
    """The route each part of a model is on at this moment."""
    return {routing: routing.route for routing in _routings(model)}


def _routings(model: nn.Module) -> list[Routing]:
    return list(dict.fromkeys(part.routing for part in model.modules() if isinstance(part, MixtureBatchNorm)))


def _check_names(branches: Sequence[str]) -> None:
    names = [branches] if isinstance(branches, str) else list(branches)
    if len(names) < 2:
        raise UsageError(f"a mixture batch norm needs two branches or more, found {names!r}")
    if len(set(names)) < len(names):
        raise UsageError(f"the branches of a mixture batch norm need names that differ, found {names!r}")
    for name in names:
        # each becomes part of the names of parameters
        if not isinstance(name, str) or not name.isidentifier() or name == "every" or hasattr(nn.ModuleDict(), name):
            raise UsageError(f"{name!r} cannot name a branch; take letters, digits and underscores, as in 'clean'")
