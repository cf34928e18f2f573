"""Fast adversarial training: one step of FGSM from a random start, watched for catastrophic overfitting.

    x_0 = x + u,  u uniform in the ball          x' = projection(x_0 + 1.25 eps · sign(∇ loss(x_0)))

Wong, Rice and Kolter, "Fast is better than free: revisiting adversarial training", 2020. Such a network may learn,
within a few hundred iterations, to withstand the single step and nothing else: catastrophic overfitting. They stop
where the accuracy under a short PGD on training images has fallen by more than 0.2 from one check to the next (their
code). Here the fall is taken from the best check so far, and must also leave PGD as far below the single step on the
same images: that one's accuracy stays or climbs meanwhile (Andriushchenko and Flammarion, "Understanding and improving
fast adversarial training", 2020), while a network that has only become worse loses both. Either fall must also be by
more than half, since a check of a hundred images is off by several per cent. The distance from the single step alone
says little: at a large radius it may be wide for long while PGD accuracy still climbs. A collapse before the
first check has no better check to fall from; so PGD accuracy below a tenth of that under the single step counts too.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bessemer import processes
from bessemer.attacks import PGD, Attack, borrowed
from bessemer.attacks.gradient_attack import GradientAttack
from bessemer.attacks.parts import Constant, StepSize
from bessemer.data import Batch
from bessemer.errors import OverfittedError, UsageError
from bessemer.threat import Threat
from bessemer.training.methods.attacking import Perturbing
from bessemer.training.methods.installed import install
from bessemer.training.methods.method import Method
from bessemer.training.methods.plain import Plain

ANSWERS = ("stop", "pgd")


@dataclass(frozen=True)
class _Share(StepSize):
    """So much of the radius, also while that climbs."""

    share: float

    def at(self, step: int, steps: int, threat: Threat) -> float:
        return self.share * threat.eps


@dataclass(frozen=True)
class FastFGSM(Perturbing):
    """Train on the images of one step from a random start.

    step_size: in the threat's own units; 1.25 eps unless given. inside: the method whose loss is taken on these images.

    check_every: every so many iterations, the first `check_images` of each process's batch are attacked by PGD with
    `check_steps` steps too; 0: never. Overfitted is a network whose PGD accuracy on them lies more than `drop` below,
    and at less than half of, both its accuracy under the single step and the best PGD accuracy of earlier checks; or
    `drop` below and at less than a tenth of the former.
    when_overfitting: "stop" raises `OverfittedError`; "pgd" trains on from there, the batch at hand included, with that
    PGD as the attack. Which iteration that was stands in the buffer `installed_fast_fgsm.overfitted_at` (−1: never).
    """

    threat: Threat
    step_size: float | None = None
    inside: Method = Plain()
    check_every: int = 200
    check_images: int = 128
    check_steps: int = 10
    drop: float = 0.2
    when_overfitting: str = "stop"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.when_overfitting not in ANSWERS:
            raise UsageError(f"when_overfitting should be stop or pgd, found {self.when_overfitting!r}")
        if self.check_every < 0 or self.check_images < 1:
            raise UsageError(
                "check_every should be at least 1, or 0 for never, and check_images at least 1, found "
                f"{self.check_every} and {self.check_images}"
            )
        if not 0 < self.drop < 1:
            raise UsageError(f"drop is a share of the images, between 0 and 1, found {self.drop}")
        _ = self.single_step, self.several_steps  # settings that cannot be are refused at once

    @property
    def single_step(self) -> Attack:
        """FGSM from a random start."""
        size = _Share(1.25) if self.step_size is None else Constant(self.step_size)
        return GradientAttack(self.threat, 1, step_size=size, last=True)

    @property
    def several_steps(self) -> Attack:
        """The PGD of the checks, and of training after overfitting."""
        return PGD(self.threat, self.check_steps)

    def prepare(self, model: nn.Module, until_done: ExitStack) -> nn.Module:
        """Install what the checks remember; then as the method inside."""
        if self.check_every:
            device = next((parameter.device for parameter in model.parameters()), None)
            install(model, "fast_fgsm", _Watch(device), until_done)
        return self.inside.prepare(model, until_done)

    def attacked(self, model: nn.Module, batch: Batch) -> Batch:
        """The batch with its adversarial images; a check comes first where it is due.

        Raises `OverfittedError` where the network is overfitted and `when_overfitting` is "stop".
        """
        if batch.adversarial is not None:
            return batch
        watch = next((module for module in model.modules() if isinstance(module, _Watch)), None)
        if watch is not None and watch.overfitted:
            return replace(batch, adversarial=self.made(self.several_steps, model, batch))
        found = replace(batch, adversarial=self.made(self.single_step, model, batch))
        done = batch.iteration + 1
        # while the radius still grows, what stands says nothing of what should stand later
        if watch is None or done % self.check_every or done < self.warmup or not self._overfitted(watch, model, found):
            return found
        return replace(batch, adversarial=self.made(self.several_steps, model, batch))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of the method inside, on the adversarial images."""
        images = self.attacked(model, batch).adversarial
        assert images is not None
        return self.inside.loss(model, replace(batch, images=images, adversarial=None))

    def _overfitted(self, watch: _Watch, model: nn.Module, batch: Batch) -> bool:
        """Whether a check finds so; all processes find the same."""
        count = self.check_images
        some = replace(batch, images=batch.images[:count], labels=batch.labels[:count], index=batch.index[:count])
        assert batch.adversarial is not None
        under_pgd = self.made(self.several_steps, model, some)
        right = torch.stack(
            [_right(model, images, some) for images in (batch.adversarial[:count], under_pgd)]
            + [torch.tensor(len(some), device=some.images.device)]
        )
        single, several, asked = processes.total(right).tolist()
        return self._judged(watch, batch.iteration, single / asked, several / asked, asked)

    def _judged(self, watch: _Watch, iteration: int, single: float, several: float, asked: int) -> bool:
        best = watch.best.item()
        watch.best.fill_(max(best, several))
        before = min(best, single)
        if several >= max(
            min(before - self.drop, before / 2),  # it has fallen
            min(single - self.drop, single / 10),  # it never stood
        ):
            return False
        if self.when_overfitting == "stop":
            raise OverfittedError(
                f"catastrophic overfitting at iteration {iteration}: of {asked} training images {single:.0%} withstand "
                f"the single step they are trained on, but {several:.0%} PGD with {self.check_steps} steps (at best "
                f'{best:.0%} at earlier checks); train anew with when_overfitting = "pgd", a smaller step_size or '
                "radius, or a lower learning rate, or take the best checkpoint, if validation has an attack"
            )
        watch.note(iteration)
        return True


class _Watch(nn.Module):
    """What the checks remember: the best PGD accuracy, and the iteration at which the network was found overfitted."""

    best: Tensor
    overfitted_at: Tensor

    def __init__(self, device: torch.device | None) -> None:
        super().__init__()
        self.register_buffer("best", torch.zeros((), device=device))
        self.register_buffer("overfitted_at", torch.tensor(-1, device=device))
        self._known: bool | None = False
        self.register_load_state_dict_post_hook(_forget)

    def forward(self, x: Tensor) -> Tensor:
        """As it comes: an `nn.Sequential` calls whatever it holds, this too."""
        return x

    @property
    def overfitted(self) -> bool:
        """Whether a check has found so. The buffer is read only after it was loaded: a look makes a GPU wait."""
        if self._known is None:
            self._known = self.overfitted_at.item() >= 0
        return self._known

    def note(self, iteration: int) -> None:
        """The network is overfitted."""
        self.overfitted_at.fill_(iteration)
        self._known = True


def _forget(watch: _Watch, keys: object) -> None:
    watch._known = None


def _right(model: nn.Module, images: Tensor, batch: Batch) -> Tensor:
    """How many of these images the network gets right in evaluation mode."""
    with borrowed(model, images.device, batch.seed), torch.no_grad():
        return (model(images).argmax(1) == batch.labels).sum()
