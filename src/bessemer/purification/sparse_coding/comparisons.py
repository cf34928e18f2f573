"""Models that the theory calls fragile at the radius where the purified network is robust, and one that escapes.

Allen-Zhu and Li, "Feature purification", 2021, arXiv:2005.10190, show that linear classifiers, low-degree polynomials
and the network's own neural tangent kernel cannot be robust, however they are trained. Each model here is a linear
readout of features that are fixed before training, f(x) = ⟨v, phi(x)⟩, with the logits (−f/2, f/2):

    Linear      phi(x) = x
    Polynomial  x, and the Hermite polynomials of degree 2 and 3 of ⟨u_j, x⟩ for random directions u_j
    Kernel      (1 + ⟨s_j, x⟩ / c)^p for samples s_j
    RandomReLU  ReLU(⟨u_j, x⟩ − b) − ReLU(−⟨u_j, x⟩ − b)
    Tangent     x · 1{|⟨w_i, x⟩| > b_i}, the slope of f in the weights w_i of a network at initialisation

The theorem is asymptotic in k. At k of about 10 a cubic of the true atoms, `Polynomial` with u_j = M_j, is nearly blind
to atoms that are absent and nearly the same for all that are present, so it escapes in part: it is the exception
(`EXCEPTIONS`). What the others withstand is for the laboratory to say; a kernel on samples is no random polynomial,
since samples are sums of a few atoms.

The gates of `Tangent` have no slope, so that a gradient sees half of how f changes: plain attacks call it robust when
it is not. `withstood` also goes through gates that have one (BPDA: Athalye, Carlini and Wagner, "Obfuscated gradients
give a false sense of security", 2018, section 4.1.2). Whoever adds a model with steps in it must do the same.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bessemer import randomness
from bessemer.attacks import BPDA, FGSM, PGD, Attack, borrowed
from bessemer.errors import UsageError
from bessemer.purification.sparse_coding.data import SparseCoding, Stream
from bessemer.threat import L2
from bessemer.training import trainer
from bessemer.training.methods import Adversarial, Method, Plain
from bessemer.training.optimizers import SGD
from bessemer.training.schedules import Cosine

EXCEPTIONS = ("cubes of the true atoms",)  # of `comparisons`: it is told what others would have to learn

RATE = 0.1
RIDGE = 1e-4  # added to the mean square of every feature
GATE_WIDTHS = (0.1, 0.25, 0.5)  # in standard deviations of ⟨w_i, x⟩: narrow ones are truer, wide ones see further
STEPS = 50
RESTARTS = 2


class Scored(nn.Module, ABC):
    """A model whose answer is one number f: logits (−f/2, f/2)."""

    def forward(self, inputs: Float[Tensor, "n d"]) -> Float[Tensor, "n 2"]:
        """The two logits."""
        return _logits(self.score(inputs))

    @abstractmethod
    def score(self, inputs: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """f."""


class Linear(Scored):
    """⟨v, scale · x⟩."""

    def __init__(self, dim: int, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))
        self.scale = scale

    def score(self, inputs: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """f."""
        return inputs @ (self.scale * self.weight)


class Readout(nn.Module):
    """A weighted sum of features, trained in coordinates where they are uncorrelated and of mean square 1.

    features: of a sample, which these coordinates are taken from. They change no function that can be learned, but one
    learning rate then serves features of every kind.
    """

    unmix: Tensor

    def __init__(self, features: Float[Tensor, "n k"]) -> None:
        super().__init__()
        size = features.square().mean(0).sqrt()
        scaled = features / size
        moment = scaled.T @ scaled / len(scaled)
        moment.diagonal().add_(RIDGE)
        one = torch.diag(torch.ones_like(size))
        inverse = torch.linalg.solve_triangular(torch.linalg.cholesky(moment).T, one, upper=True)
        self.register_buffer("unmix", inverse / size[:, None])
        self.weight = nn.Parameter(torch.zeros_like(size))

    @property
    def coefficients(self) -> Float[Tensor, " k"]:
        """Of the features themselves."""
        return self.unmix @ self.weight

    def forward(self, features: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        """The sum."""
        return features @ self.coefficients


class Polynomial(Scored):
    """A linear part, and He_p(⟨u_j, scale · x⟩) for the rows u_j of `directions` and every p from 2 to `degree`.

    He_2(t) = t² − 1 and He_3(t) = t³ − 3t are uncorrelated with lower powers where t is normal, as it nearly is for a
    random direction and the scale √(d / E‖x‖²). Raises `UsageError` for another degree than 2 and 3.
    """

    directions: Tensor

    def __init__(
        self, directions: Float[Tensor, "k d"], degree: int, sample: Float[Tensor, "n d"], scale: float = 1.0
    ) -> None:
        super().__init__()
        if degree not in (2, 3):
            raise UsageError(f"Polynomial takes degree 2 or 3, not {degree}; degree 1 is Linear")
        self.register_buffer("directions", scale * directions)
        self.degree = degree
        self.linear = Linear(directions.shape[1], scale)
        self.readouts = nn.ModuleList(Readout(features) for features in self._powers(sample))

    def score(self, inputs: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """f."""
        total = self.linear.score(inputs)
        for readout, features in zip(self.readouts, self._powers(inputs), strict=True):
            total = total + readout(features)
        return total

    def _powers(self, inputs: Tensor) -> list[Tensor]:
        along = inputs @ self.directions.T
        square = along.square()
        return [square - 1, along * (square - 3)][: self.degree - 1]


class Kernel(Scored):
    """(1 + ⟨s_j, x⟩ / spread)^degree − 1 for the rows s_j of `support`.

    With the standard deviation of ⟨s_j, x⟩ as the spread, all powers count.
    """

    support: Tensor

    def __init__(
        self, support: Float[Tensor, "k d"], degree: int, sample: Float[Tensor, "n d"], spread: float = 1.0
    ) -> None:
        super().__init__()
        self.register_buffer("support", support / spread)
        self.degree = degree
        self.readout = Readout(self._features(sample))

    def score(self, inputs: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """f."""
        return self.readout(self._features(inputs))

    def _features(self, inputs: Tensor) -> Tensor:
        return (1 + inputs @ self.support.T) ** self.degree - 1


class RandomReLU(Scored):
    """ReLU(⟨u_j, scale · x⟩ − threshold) − ReLU(−⟨u_j, scale · x⟩ − threshold) for the rows u_j of `directions`."""

    directions: Tensor

    def __init__(
        self, directions: Float[Tensor, "k d"], threshold: float, sample: Float[Tensor, "n d"], scale: float = 1.0
    ) -> None:
        super().__init__()
        self.register_buffer("directions", scale * directions)
        self.threshold = threshold
        self.readout = Readout(self._features(sample))

    def score(self, inputs: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """f."""
        return self.readout(self._features(inputs))

    def _features(self, inputs: Tensor) -> Tensor:
        along = inputs @ self.directions.T
        return torch.relu(along - self.threshold) - torch.relu(-along - self.threshold)


class Tangent(Scored):
    """The tangent of `SymmetricReLU` at its initial weights: scale · Σ_i ⟨v_i, x⟩ 1{|⟨w_i, x⟩| > b_i}.

    initial: the w_i. thresholds: the b_i; where all are 0, every gate is open and the model is linear.
    """

    initial: Tensor
    thresholds: Tensor

    def __init__(self, initial: Float[Tensor, "m d"], thresholds: Float[Tensor, " m"], scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("initial", initial)
        self.register_buffer("thresholds", thresholds)
        self.weight = nn.Parameter(torch.zeros_like(initial))
        self.scale = scale

    def score(self, inputs: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """f."""
        return self._sum(inputs, self._before(inputs) > 0)

    def through_gates(self, attack: Attack, width: float) -> BPDA:
        """The attack, which sees a gate open gradually: as the normal distribution function of a deviation `width`."""

        def gates(inputs: Tensor) -> Tensor:
            return torch.cat([inputs, self._before(inputs) > 0], 1)

        def gradual(inputs: Tensor) -> Tensor:
            return torch.cat([inputs, torch.special.ndtr(self._before(inputs) / width)], 1)

        def rest(gated: Tensor) -> Tensor:
            return _logits(self._sum(*gated.split([self.initial.shape[1], len(self.initial)], 1)))

        return BPDA(attack, stage=gates, rest=rest, backward=gradual)

    def _before(self, inputs: Tensor) -> Tensor:
        return (inputs @ self.initial.T).abs() - self.thresholds

    def _sum(self, inputs: Tensor, gates: Tensor) -> Tensor:
        return (inputs @ (self.scale * self.weight).T * gates).sum(1)


def comparisons(source: SparseCoding, width: int | None = None, seed: int = 0) -> dict[str, Callable[[], Scored]]:
    """What makes each untrained model, by name.

    width: how many random directions, samples of a kernel, or pairs of the network; 2d unless given. The thresholds of
    ReLU features and gates stand at 1 and 1.5 standard deviations of what they cut: lower ones come closer to a linear
    model, and at 0 are one.
    """
    width = 2 * source.dim if width is None else width
    scale = math.sqrt(source.dim / source.mean_square)  # to coordinates of mean square 1

    @cache
    def sample() -> Tensor:
        return source.draw(4 * max(width, source.dim), randomness.subseed(seed, 0)).inputs

    def directions(label: int) -> Tensor:
        rows = _normal(width, source.dim, randomness.subseed(seed, 1, label))
        return rows / rows.norm(dim=1, keepdim=True)

    def polynomial(degree: int) -> Polynomial:
        return Polynomial(directions(degree), degree, sample(), scale)

    def kernel(degree: int) -> Kernel:
        support = source.draw(width, randomness.subseed(seed, 2)).inputs
        return Kernel(support, degree, sample(), spread=source.mean_square / math.sqrt(source.dim))

    def tangent(deviations: float) -> Tangent:
        initial = _normal(width, source.dim, randomness.subseed(seed, 3)) / math.sqrt(source.mean_square)
        open_share = math.erfc(deviations / math.sqrt(2))
        return Tangent(initial, torch.full((width,), deviations), scale / math.sqrt(width * open_share))

    return {
        "linear": lambda: Linear(source.dim, scale),
        "random features, degree 2": lambda: polynomial(2),
        "random features, degree 3": lambda: polynomial(3),
        "kernel, degree 2": lambda: kernel(2),
        "kernel, degree 3": lambda: kernel(3),
        "random ReLU features": lambda: RandomReLU(directions(0), 1.0, sample(), scale),
        "tangent kernel": lambda: tangent(1.5),
        "cubes of the true atoms": lambda: Polynomial(source.atoms, 3, sample(), scale),
    }


def fit_comparison(
    model: nn.Module,
    stream: Stream,
    tau: float | None = None,
    iterations: int = 300,
    watch: trainer.AfterStep = lambda done, loss: True,
    lr: float = RATE,
) -> None:
    """Train a model where it stands: on clean inputs, or adversarially, by the fast gradient method of L2 radius tau.

    watch: asked after every step, with the number of steps made and the loss, whether to go on.
    """
    method: Method = Plain() if tau is None else Adversarial(FGSM(L2(tau, box=None)))
    optimizer = SGD(model.parameters(), lr)
    trainer.fit(model, stream, method, optimizer, Cosine(), lr, iterations, watch)


def withstood(
    model: nn.Module,
    inputs: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    source: SparseCoding,
    tau: float,
    seed: int = 0,
) -> dict[str, float]:
    """The shares of samples that a model still gets right: clean, under each attack of L2 radius tau, under `all`.

    An attack's own share counts samples that are wrong without it as lost. `smooth gates` is the union over
    `GATE_WIDTHS`, for models that have gates.
    """
    threat = L2(tau, box=None)
    pgd = PGD(threat, steps=STEPS, restarts=RESTARTS, loss="margin")
    attacks: dict[str, list[Attack]] = {"FGM": [FGSM(threat)], "PGD": [pgd]}
    if isinstance(model, Tangent):
        attacks["smooth gates"] = [model.through_gates(pgd, width) for width in GATE_WIDTHS]

    def right(points: Tensor) -> Bool[Tensor, " n"]:
        with borrowed(model, inputs.device, seed), torch.no_grad():
            return model(points).argmax(1) == labels

    clean = right(inputs)
    away = (1 - 2 * labels)[:, None] * source.dense_direction.to(inputs)
    stands = {"dense direction": clean & right(inputs + tau * away)}
    for name, several in attacks.items():
        stands[name] = clean.clone()
        for attack in several:
            left = stands[name].nonzero()[:, 0]
            found = attack.run(model, inputs[left], labels[left], seed=seed, index=left, until_success=True).images
            adversarial = inputs.index_copy(0, left, found)
            stands[name] &= right(adversarial)
    stands["all"] = torch.stack(list(stands.values())).all(0)
    return {"clean": clean.float().mean().item()} | {
        name: standing.float().mean().item() for name, standing in stands.items()
    }


def _logits(score: Float[Tensor, " n"]) -> Float[Tensor, "n 2"]:
    half = score[:, None] / 2
    return torch.cat([-half, half], 1)


def _normal(rows: int, columns: int, seed: int) -> Float[Tensor, "rows columns"]:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
