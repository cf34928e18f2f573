"""One update: from a batch to its loss, the gradients, and the optimiser's step.

Processes that train together each hold a part of the batch and average their gradients (PyTorch's
DistributedDataParallel around the loss itself, so that a method may call its model as often as it likes; a network that
is spread over them averages its own). Where each normalises by its own images, they average their running statistics,
too, so that at every moment all of them hold one network. A process may work through its part in several steps, one
after the other (`accumulation`), where it does not fit into memory at once.
"""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from bessemer import processes
from bessemer.data import Batch
from bessemer.layers import SynchronizedBatchNorm
from bessemer.training.methods import Method
from bessemer.training.methods.method import Losses
from bessemer.training.optimizers import SGD
from bessemer.training.sharding import is_spread

# running statistics are synchronised by the norms themselves, or averaged by `Update`; torch changes the name
_OWN_BUFFERS: dict[str, Any] = (
    {"forward_sync_buffers": False}
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else {"broadcast_buffers": False}
)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Update:
    """Call it with a batch: it updates the weights, and returns the mean loss.

    model: as the method prepared it. precision: of the passes, `float32`, `bfloat16` or `float16` (autocast; weights
    and updates stay in float32, and for float16 the loss is scaled so that gradients do not underflow). accumulation:
    in how many parts the batch is worked through.
    """

    def __init__(
        self, model: nn.Module, method: Method, optimizer: SGD, precision: str = "float32", accumulation: int = 1
    ) -> None:
        self.model, self.method, self.optimizer, self.accumulation = model, method, optimizer, accumulation
        device = next(model.parameters()).device
        self._objective: nn.Module = _Objective(model, device.type, PRECISIONS[precision])
        if processes.place()[1] > 1 and not is_spread(model):
            places = [device] if device.type == "cuda" else None
            self._objective = DistributedDataParallel(self._objective, places, **_OWN_BUFFERS)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
        self._apart = _statistics_apart(model) if processes.place()[1] > 1 else []

    def __call__(self, batch: Batch) -> Tensor:
        """The update, or as many of them as the method makes of one batch."""
        parts = [
            self.method.losses(self.model, batch.part(number, self.accumulation)) for number in range(self.accumulation)
        ]
        found: list[Tensor] = []
        before = [statistic.clone() for statistic in self._apart]
        with ExitStack() as until_done:
            for part in parts:  # what a method changes for the length of its losses it takes back when they end
                until_done.callback(part.close)
            for _ in range(self.method.updates):
                self.optimizer.zero_grad()
                for number, part in enumerate(parts):
                    with self._alone() if number < len(parts) - 1 else nullcontext():
                        loss = self._objective(part)
                        self.scaler.scale(loss / len(parts)).backward()
                    found.append(loss.detach())
                self.scaler.step(self.optimizer)
                self.scaler.update()
        if before:
            _bring_together(self._apart, before)
        return torch.stack(found).mean() if len(found) > 1 else found[0]

    def _alone(self) -> AbstractContextManager[None]:
        """Gradients of all parts but the last stay with this process: they are averaged once."""
        several = isinstance(self._objective, DistributedDataParallel)
        return self._objective.no_sync() if several else nullcontext()  # type: ignore[operator]


def _statistics_apart(model: nn.Module) -> list[Tensor]:
    """The running means and variances that each process finds by itself."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    own = [norm for norm in norms if not isinstance(norm, SynchronizedBatchNorm)]
    found = [statistic for norm in own for statistic in (norm.running_mean, norm.running_var) if statistic is not None]
    return list({id(statistic): statistic for statistic in found}.values())


def _bring_together(statistics: list[Tensor], before: list[Tensor]) -> None:
    """Move statistics that were the same in all processes by the mean of how far each has moved them."""
    moved = [now - then for now, then in zip(statistics, before, strict=True)]
    mean = processes.total(torch.cat(moved)) / processes.place()[1]
    for now, then, far in zip(statistics, before, mean.split([len(each) for each in moved]), strict=True):
        now.copy_(then + far)


class _Objective(nn.Module):
    """The next loss of a batch, as a module: what DistributedDataParallel must see is one pass and its backward."""

    def __init__(self, model: nn.Module, device: str, precision: torch.dtype) -> None:
        super().__init__()
        self.model, self._device, self._precision = model, device, precision

    def forward(self, losses: Losses) -> Tensor:
        if self._precision == torch.float32:
            return next(losses)
        with torch.autocast(self._device, self._precision):
            return next(losses)
