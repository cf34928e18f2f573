"""Expectation over transformation: an attack on what a random model does on average.

A model that draws something at each call (noise, a random resize, dropout left on) answers the same image differently;
one gradient follows one draw. The attack inside sees averages over m calls instead:

    ∇E_r[loss(f_r(x))] = E_r[∇loss(f_r(x))] ≈ (1/m) Σ_i ∇loss(f_{r_i}(x))

Athalye, Engstrom, Ilyas and Kwok, "Synthesizing robust adversarial examples", 2018, section 2; used against random
defences by Athalye, Carlini and Wagner, "Obfuscated gradients give a false sense of security", 2018, section 4.2.
Losses and gradients are averaged, not the loss of an average; an image counts as fooled during the search where the
averaged logits are wrong. The judge calls the model once, as a user would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from bessemer.attacks.attack import Images, Oracle
from bessemer.attacks.goal import Goal, Rows
from bessemer.attacks.losses import Loss, cross_entropy
from bessemer.attacks.wrapped import View, Wrapped
from bessemer.errors import UsageError


@dataclass(frozen=True)
class EOT(Wrapped):
    """The attack inside, on the average over `samples` calls of a model that draws at random.

    Every call is counted. The model's draws come from torch's global generator, which starts from the attack's seed:
    results repeat, but depend on how a batch is split, as the model itself does. Raises `UsageError` for less than one
    sample.
    """

    samples: int = 10

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UsageError(f"EOT needs at least 1 sample, found {self.samples}")

    def passes(self, classes: int) -> tuple[int, int]:
        """As the attack inside, each as often as there are samples."""
        forwards, backwards = self.attack.passes(classes)
        return self.samples * forwards, self.samples * backwards

    def search(
        self, oracle: Oracle, images: Images, goal: Goal, seed: int, index: Tensor, until_success: bool
    ) -> Images:
        """The attack inside, with every answer averaged."""
        return self.attack.search(_Average(oracle, self.samples), images, goal, seed, index, until_success)


class _Average(View):
    """Every question is put `samples` times."""

    def __init__(self, oracle: Oracle, samples: int) -> None:
        super().__init__(oracle)
        self._samples = samples

    def logits(self, images: Images, rows: Rows = None) -> Float[Tensor, "n k"]:
        """Averaged."""
        (logits,) = self._mean(lambda: (self._oracle.logits(images, rows),))
        return logits

    def gradient(
        self, images: Images, loss: Loss = cross_entropy, rows: Rows = None, goal: Goal | None = None
    ) -> tuple[Images, Float[Tensor, "n k"], Float[Tensor, " n"]]:
        """The averages of the gradient, the logits and the loss."""
        gradient, logits, values = self._mean(lambda: self._oracle.gradient(images, loss, rows, goal))
        return gradient, logits, values

    def jacobian(
        self, images: Images, rows: Rows = None, classes: Int[Tensor, "n c"] | None = None
    ) -> tuple[Float[Tensor, "n c *shape"], Float[Tensor, "n k"]]:
        """Averaged."""
        jacobian, logits = self._mean(lambda: self._oracle.jacobian(images, rows, classes))
        return jacobian, logits

    def verdict(self, images: Images, rows: Rows = None) -> Float[Tensor, "n k"]:
        """Averaged."""
        (logits,) = self._mean(lambda: (self._oracle.verdict(images, rows),))
        return logits

    def _mean(self, ask: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
        total = list(ask())
        for _ in range(1, self._samples):
            total = [held + one for held, one in zip(total, ask(), strict=True)]
        return [held / self._samples for held in total]
