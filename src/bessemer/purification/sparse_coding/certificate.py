"""What no l2 perturbation of a radius can do to the laboratory's network: a proven lower bound of the margin.

The network is f(x) = Σ_i h_i(⟨w_i, x⟩), h_i(t) = ReLU(t − b_i) − ReLU(−t − b_i), b_i ≥ 0. It is odd, so a sample of the
label y = ±1 is the sample yx of the label +1, and we bound min f(x + δ) over ‖δ‖ ≤ τ from below. Write p_i = ⟨w_i, x⟩
and q_i = ⟨w_i, δ⟩, which stays between l_i = −τ‖w_i‖ and u_i = τ‖w_i‖. h_i has a convex kink at b_i and a concave one
at −b_i, and only the concave one makes the minimum hard.

**The inequality.** For every neuron choose any slope s_i and any curvature κ_i ≥ 0, and let

    c_i = max over l_i ≤ q ≤ u_i of s_i q − κ_i q² − h_i(p_i + q)                                                    (1)

(a maximum of three parabolas on three intervals, in closed form). Then h_i(p_i + q_i) ≥ s_i q_i − κ_i q_i² − c_i, and
with g = Σ s_i w_i and Q = Σ κ_i w_i w_iᵀ, for every λ ≥ 0 with λI − Q positive semi-definite and every ‖δ‖ ≤ τ,

    f(x + δ) ≥ ⟨g, δ⟩ − δᵀQδ − Σ c_i  ≥  min over d of ⟨g, d⟩ + dᵀ(λI − Q)d  −  λτ² − Σ c_i,                         (2)

where the second step adds λ(‖δ‖² − τ²) ≤ 0. The right side of (2) is the bound; whatever s, κ and λ are, it is sound.

**The choice.** (2) is concave in (s, κ, λ), and its maximum is the minimum of a relaxed adversary who plays a random δ
with E‖δ‖² ≤ τ², and whom each neuron meets in the worst distribution of q_i that has the mean and the variance given
to it: μ_i = ⟨w_i, δ⟩ and V_i = Σ_j ⟨w_i, u_j⟩² for a shift δ and independent random multiples of a few directions u_j,
‖δ‖² + Σ ‖u_j‖² = τ². At a concave kink that distribution sits on two points, ρ_i to the left and to the right of it,
ρ_i² = V_i + (μ_i + p_i + b_i)² (Scarf, "A min-max solution of an inventory problem", 1958), and the parabola that
touches h_i at both has

    κ_i = 1 / (4 ρ_i),    s_i = ½ − (p_i + b_i) / (2 ρ_i).                                                           (3)

Where a point would lie beyond l_i, u_i or the convex kink, it moves there and the parabola follows. (3) is the gradient
of the relaxed adversary's objective, so he descends by generalised power steps on the sphere, and the averages of his
last slopes and curvatures go into (2). All this is search, in float32, and can cost tightness but not soundness.

**The cascade.** `shared`: with κ_i cut off at θκ̄_i, κ̄ a property of the network and θ ≤ 1, one factorisation for all
samples proves θλ̄I − Q positive semi-definite, and (2) costs a few products of matrices. `refuted`: a point of the
search turns the sample, so nothing is left to prove. `dual`: (2) with the uncut κ and the sample's own λ, found on a
Krylov space of Q. `split`: the ball is cut into slabs a ≤ ⟨v, δ⟩ ≤ b across the main direction v of the u_j, in which
the relaxed adversary is random and no real one can be. In a slab l_i and u_i are narrower, and
ν(⟨v, δ⟩ − a)(⟨v, δ⟩ − b) ≤ 0 joins (2) for any ν ≥ 0; the least bound of the slabs holds for the ball. (To the relaxed
adversary the slab is a small ball around its middle, in which (⟨v, δ⟩, ⟨v, u_1⟩, …) must lie; he is projected onto it.)
What remains is `open`.

**Rounding.** (2) is evaluated in float64 for the real numbers that the given weights, thresholds and inputs are, and an
allowance for all rounding is taken off, with γ_n = n2⁻⁵³ / (1 − n2⁻⁵³) (Higham, "Accuracy and stability of numerical
algorithms", 2002, sections 3.1 and 10.1). A Cholesky factorisation of A = λI − Q that runs to its end proves A + εI
positive semi-definite for ε = γ_{d+2} tr(A) + γ_{m+4} (Σ κ_i ‖w_i‖² + λ + ν), and a quadratic Ψ with Hessian 2A has

    Ψ(δ) ≥ Ψ(d) − ‖∇Ψ(d)‖ (τ + ‖d‖) − ε (τ + ‖d‖)²    for all ‖δ‖ ≤ τ and any d,                                    (4)

so d need not be the exact minimiser. Each sum of n terms may be off by γ_n times the sum of their magnitudes, and each
h_i by the error of its p_i, at most γ_d ‖w_i‖ ‖x‖; we take off several times as much. The bound is about f in exact
arithmetic: a network run in float32 differs from it by its own rounding. The derivation is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bessemer.errors import UsageError

STAGES = ("misclassified", "shared", "refuted", "dual", "split", "open")

_STEPS = 40  # power steps of the relaxed adversary; the last half is averaged
_SLABS = 4
_DIRECTIONS = 3  # in which the relaxed adversary is random
_CUT = 1.6  # the shared curvature κ̄_i in units of 1 / (4 b_i)
_CHUNK = 64  # samples searched at once
_WIDER = 1 + 1e-9  # of intervals, against the rounding of their ends
_SOLVES = 16  # steps of conjugate gradients
_UNIT = 2.0**-53


@dataclass(frozen=True)
class Certificate:
    """What was proven of each sample. STAGES[stage] names the step that decided it.

    certified: no perturbation of at most `radius` in l2 changes the class (stages `shared`, `dual`, `split`).
    bound: what y f stays above within the radius; a sample that an early stage decides gets no better one than that
    stage's, and one that is misclassified gets -inf. margin: y f of the sample itself.
    """

    radius: float
    certified: Bool[Tensor, " n"]
    bound: Float[Tensor, " n"]
    margin: Float[Tensor, " n"]
    stage: Int[Tensor, " n"]


def certify(
    weights: Float[Tensor, "m d"],
    biases: Float[Tensor, " m"],
    inputs: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    radius: float,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Certificate:
    """Which samples of f(x) = Σ ReLU(⟨w_i, x⟩ − b_i) − ReLU(−⟨w_i, x⟩ − b_i) no l2 perturbation of the radius can turn.

    labels: classes 0 (f < 0) and 1 (f > 0). watch: called with the number of samples decided and of all samples. Raises
    UsageError for shapes that do not fit, numbers that are not finite, labels other than 0 and 1, negative biases and
    negative radii.
    """
    _refuse(weights, biases, inputs, labels, radius)
    unit = _power_of_two(weights)  # f scales with the network, and the search is in float32
    network = _Network.of(weights.detach().double() / unit, biases.detach().double() / unit, radius)
    samples = inputs.detach().double() * (2 * labels[:, None] - 1)
    before = samples @ network.weights.T
    margin = network.score(before)
    bound = torch.full_like(margin, -math.inf)
    stage = torch.full_like(labels, STAGES.index("misclassified"), dtype=torch.long)
    right = (margin > 0).nonzero()[:, 0]
    done = len(samples) - len(right)
    watch(done, len(samples))
    for chunk in right.split(_CHUNK):
        points = _Points(before[chunk], samples[chunk].norm(dim=1))
        parts = _search(network, points, network.start.expand(len(chunk), -1, -1), None)
        bound[chunk] = _shared(network, points, parts)
        stage[chunk] = STAGES.index("shared")
        for place in (bound[chunk] <= 0).nonzero()[:, 0].tolist():
            name, found = _decide(network, points.at(place), parts.at(place))
            bound[chunk[place]] = bound[chunk[place]].clamp(min=found)
            stage[chunk[place]] = STAGES.index(name)
        done += len(chunk)
        watch(done, len(samples))
    return Certificate(radius, bound > 0, bound * unit, margin * unit, stage)


def _decide(network: _Network, point: _Points, whole: _Search) -> tuple[str, float]:
    """The stages that take one sample at a time: the one that decided it, and the bound it found."""
    if network.turned(point, whole):
        return "refuted", -math.inf
    bound = _dual(network, point, whole)
    if bound > 0:
        return "dual", bound
    bound = max(bound, _split(network, point, whole))
    return ("split" if bound > 0 else "open"), bound


def _power_of_two(weights: Tensor) -> float:
    """The power of two next to the longest weight: a division by it does not round."""
    longest = weights.detach().double().norm(dim=1).amax().item() if weights.numel() else 0.0
    return 2.0 ** math.frexp(longest)[1] if longest else 1.0


def _refuse(weights: Tensor, biases: Tensor, inputs: Tensor, labels: Tensor, radius: float) -> None:
    if weights.ndim != 2 or biases.shape != weights.shape[:1]:
        raise UsageError(
            f"a network needs weights (m, d) and biases (m,), not {tuple(weights.shape)} and {tuple(biases.shape)}"
        )
    if inputs.ndim != 2 or inputs.shape[1] != weights.shape[1]:
        raise UsageError(f"inputs must be (n, {weights.shape[1]}) for these weights, not {tuple(inputs.shape)}")
    if labels.shape != inputs.shape[:1]:
        raise UsageError(f"{len(inputs)} inputs need as many labels in one dimension, not {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex() or not ((labels == 0) | (labels == 1)).all():
        raise UsageError("labels must be the classes 0 and 1 as integers; write y = -1, +1 as (y + 1) // 2")
    if not all(torch.isfinite(numbers).all() for numbers in (weights, biases, inputs)):
        raise UsageError("weights, biases and inputs must be finite numbers, and some are not; did training diverge?")
    if (biases < 0).any():
        raise UsageError(f"biases are thresholds and must be 0 or more, not {biases.min().item():g}")
    if not 0 <= radius < math.inf:
        raise UsageError(f"a radius must be 0 or more and finite, not {radius:g}")


@dataclass(frozen=True)
class _Network:
    """The network in float64, its weights in float32 for the search, the radius, and what all samples share.

    shared: κ̄, with λ̄I − Σ κ̄_i w_i w_iᵀ + slack · I positive semi-definite. start: where the relaxed adversary begins,
    without a shift and with the u_j along the directions that the weights amplify most.
    """

    weights: Float[Tensor, "m d"]
    biases: Float[Tensor, " m"]
    norms: Float[Tensor, " m"]
    quick_weights: Float[Tensor, "m d"]
    radius: float
    start: Float[Tensor, "r d"]
    shared: Float[Tensor, " m"]
    shared_ball: float
    shared_slack: float

    @classmethod
    def of(cls, weights: Tensor, biases: Tensor, radius: float) -> _Network:
        """Prepare what belongs to the network and the radius alone."""
        radius = max(radius, 1e-9)  # a bound of the larger radius holds for the smaller one, and 0 has no direction
        norms = weights.norm(dim=1) * _WIDER
        start = torch.linalg.eigh(weights.T @ weights)[1][:, -_DIRECTIONS:].T
        start = torch.cat([torch.zeros_like(start[:1]), start]).float()
        shared = _CUT / (4 * torch.maximum(biases, 0.1 * radius * norms).clamp(min=1e-30))
        matrix = (weights.T * shared) @ weights
        ball = torch.linalg.eigvalsh(matrix)[-1].item()
        ball, slack, _ = _proven(matrix, ball, len(weights), (norms.square() * shared).sum().item())
        return cls(weights, biases, norms, weights.float(), radius, start, shared, ball, slack)

    def score(self, before: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
        """f, from the neurons' inner products."""
        return (torch.relu(before - self.biases) - torch.relu(-before - self.biases)).sum(1)

    def turned(self, point: _Points, search: _Search) -> bool:
        """Whether the shift, alone or with some u_j added or taken off, is itself an adversarial example."""
        shift, spread = search.adversary[0, :1].double(), search.adversary[0, 1:].double()
        tries = torch.cat([shift, shift + spread, shift - spread])
        tries = tries * (self.radius / (_WIDER * tries.norm(dim=1, keepdim=True).clamp(min=1e-30)))
        return bool((self.score(point.before + tries @ self.weights.T) < 0).any())


@dataclass(frozen=True)
class _Points:
    """The inner products p_i of some samples, and the samples' lengths."""

    before: Float[Tensor, "k m"]
    lengths: Float[Tensor, " k"]

    def at(self, place: int) -> _Points:
        """One of them."""
        return _Points(self.before[place][None], self.lengths[place][None])


@dataclass(frozen=True)
class _Slabs:
    """The parts low ≤ ⟨direction, δ⟩ ≤ high of the ball."""

    direction: Float[Tensor, " d"]
    low: Float[Tensor, " k"]
    high: Float[Tensor, " k"]

    def at(self, place: int) -> _Slabs:
        """One of them."""
        return _Slabs(self.direction, self.low[place][None], self.high[place][None])


@dataclass(frozen=True)
class _Search:
    """For each part: slopes, curvatures, ranges of q, and the relaxed adversary (δ, u_1, …) who proposed them."""

    slopes: Float[Tensor, "k m"]
    curvatures: Float[Tensor, "k m"]
    low: Float[Tensor, "k m"]
    high: Float[Tensor, "k m"]
    adversary: Float[Tensor, "k r d"]

    def at(self, place: int) -> _Search:
        """The proposal for one part."""
        part = slice(place, place + 1)
        return _Search(self.slopes[part], self.curvatures[part], self.low[part], self.high[part], self.adversary[part])


# --- the relaxed adversary -------------------------------------------------------------------------------------------


def _search(network: _Network, points: _Points, start: Float[Tensor, "k r d"], slabs: _Slabs | None) -> _Search:
    """Let the relaxed adversary descend, and keep the parabolas that he met."""
    low, high = _ranges(network, slabs, len(start))
    weights, radius = network.quick_weights, network.radius
    ends = (points.before.float(), network.biases.float(), low.float(), high.float())
    adversary = _onto_slabs(start, radius, slabs)
    slopes = curvatures = torch.zeros_like(ends[0])
    for step in range(_STEPS):
        inner = adversary @ weights.T
        mean, spread = inner[:, 0], inner[:, 1:]
        slope, curvature = _parabola(mean, spread.square().sum(1), *ends)
        if step >= _STEPS // 2:
            slopes, curvatures = slopes + slope, curvatures + curvature
        descent = 2 * curvature[:, None] * inner
        descent[:, 0] -= slope
        descent = descent @ weights
        descent = descent / descent.flatten(1).norm(dim=1)[:, None, None].clamp(min=1e-30)
        adversary = _onto_slabs(adversary / radius + descent, radius, slabs)
    averaged = _STEPS - _STEPS // 2
    return _Search(slopes.double() / averaged, curvatures.double() / averaged, low, high, adversary)


def _ranges(network: _Network, slabs: _Slabs | None, parts: int) -> tuple[Tensor, Tensor]:
    """Where q_i can be: the extremes of αt + ω √(τ² − t²) over t in the slab, α = ⟨w_i, v⟩ and ω² + α² = ‖w_i‖²."""
    reach = network.radius * network.norms
    if slabs is None:
        return (-reach).expand(parts, -1), reach.expand(parts, -1)
    along = network.weights @ slabs.direction
    across = (network.norms.square() - along.square()).clamp(min=0).sqrt()

    def highest(along: Tensor) -> Tensor:
        best = network.radius * along / network.norms.clamp(min=1e-300)
        best = torch.minimum(torch.maximum(best, slabs.low[:, None]), slabs.high[:, None])
        return along * best + across * (network.radius**2 - best.square()).clamp(min=0).sqrt() + 1e-8 * reach

    return torch.maximum(-highest(-along), -reach), torch.minimum(highest(along), reach)


def _onto_slabs(adversary: Float[Tensor, "k r d"], radius: float, slabs: _Slabs | None) -> Float[Tensor, "k r d"]:
    """Scaled onto the sphere ‖δ‖² + ‖u‖² = τ², in a slab with (⟨v, δ⟩, ⟨v, u⟩) in its disc."""
    adversary = adversary * (radius / adversary.flatten(1).norm(dim=1)[:, None, None].clamp(min=1e-30))
    if slabs is None:
        return adversary
    direction = slabs.direction.float()
    along = adversary @ direction
    rest = adversary - along[:, :, None] * direction
    middle = torch.zeros_like(along)
    middle[:, 0] = (slabs.low + slabs.high) / 2
    away = along - middle
    half = ((slabs.high - slabs.low) / 2).float()
    along = middle + away * (half / away.norm(dim=1).clamp(min=1e-30)).clamp(max=1)[:, None]
    left = (radius**2 - along.square().sum(1)).clamp(min=0).sqrt()
    rest = rest * (left / rest.flatten(1).norm(dim=1).clamp(min=1e-30))[:, None, None]
    return rest + along[:, :, None] * direction


def _parabola(
    mean: Tensor, variance: Tensor, before: Tensor, biases: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """(3): slope and curvature of the best parabola below h for a q of that mean and variance between low and high."""
    tiny = 1e-30
    concave, convex = -before - biases, biases - before
    right_end = torch.minimum(convex, high)
    away = (variance + (mean - concave).square()).sqrt().clamp(min=tiny)
    left = concave - away
    curvature = 1 / (4 * away)
    slope = 1 + 2 * curvature * left

    # the right point stops at the convex kink or at the end of the range
    beyond = concave + away > right_end
    met = mean - variance / (right_end - mean).clamp(min=tiny)
    bent = (right_end - concave).clamp(min=0) / (right_end - met).square().clamp(min=tiny)
    curvature = torch.where(beyond, bent, curvature)
    slope = torch.where(beyond, 1 + 2 * bent * met, slope)
    left = torch.where(beyond, met, left)

    # the left point stops at the end of the range; if both do, the parabola is their chord
    beyond = left < low
    right = mean + variance / (mean - low).clamp(min=tiny)
    height = (concave - low).clamp(min=0)
    bent = height / (right - low).square().clamp(min=tiny)
    chord = beyond & (right > right_end)
    curvature = torch.where(beyond, torch.where(chord, 0, bent), curvature)
    slope = torch.where(beyond, torch.where(chord, height / (right_end - low).clamp(min=tiny), 2 * bent * right), slope)

    # no concave kink in the range, or a mean to the right of the convex one: a line
    for line, value in ((concave <= low, 0.0), (concave >= high, 1.0), (mean >= convex, 1.0)):
        curvature = torch.where(line, 0, curvature)
        slope = torch.where(line, value, slope)
    return slope.nan_to_num(0, 0, 0), curvature.nan_to_num(0, 0, 0).clamp(min=0)


# --- the bound -------------------------------------------------------------------------------------------------------


def _shared(network: _Network, points: _Points, search: _Search) -> Float[Tensor, " k"]:
    """(2) with curvatures cut off at the network's κ̄, so that a multiple of λ̄ serves every sample."""
    cut = search.curvatures > network.shared
    curvatures = torch.minimum(search.curvatures, network.shared)
    slopes = torch.where(cut, 0.5 - 2 * network.shared * (points.before + network.biases), search.slopes)
    search = replace(search, slopes=slopes, curvatures=curvatures)
    share = (curvatures / network.shared).amax(1) * _WIDER
    weights, bent, steep = network.quick_weights, curvatures.float(), slopes.float()

    # where the relaxed adversary stands still, the pull on him is λ times his place on the sphere
    pull = 2 * bent[:, None] * (search.adversary @ weights.T)
    pull[:, 0] -= steep
    pull = (pull @ weights).flatten(1).norm(dim=1).double() / (2 * network.radius)
    ball = torch.maximum(share * network.shared_ball, pull)

    # conjugate gradients for 2(λI − Q)d = −g; (4) forgives what they leave
    residual = -steep @ weights
    minimiser = torch.zeros_like(residual)
    direction, size = residual, residual.square().sum(1)
    for _ in range(_SOLVES):
        image = 2 * (ball.float()[:, None] * direction - (bent * (direction @ weights.T)) @ weights)
        step = (size / (direction * image).sum(1).clamp(min=1e-30))[:, None]
        minimiser, residual = minimiser + step * direction, residual - step * image
        size, last = residual.square().sum(1), size
        direction = residual + (size / last.clamp(min=1e-30))[:, None] * direction
    multipliers = _Multipliers(ball, torch.zeros_like(ball), share * network.shared_slack)
    return _value(network, points, search, minimiser.double(), multipliers)


def _split(network: _Network, point: _Points, whole: _Search) -> float:
    """The least bound of the slabs across the main direction of the u_j; -inf as soon as one is not positive."""
    direction = torch.linalg.svd(whole.adversary[0, 1:].double(), full_matrices=False)[2][0]
    edges = torch.linspace(-1, 1, _SLABS + 1, dtype=torch.float64, device=direction.device) * (network.radius * _WIDER)
    slabs = _Slabs(direction, edges[:-1], edges[1:])
    parts = _search(network, point, whole.adversary.expand(_SLABS, -1, -1), slabs)
    least = math.inf
    away = (direction @ whole.adversary[0, 0].double() - (slabs.low + slabs.high) / 2).abs()
    for place in away.argsort().tolist():
        least = min(least, _dual(network, point, parts.at(place), slabs.at(place)))
        if least <= 0:
            return -math.inf  # the slabs not looked at may have less
    return least


def _dual(network: _Network, point: _Points, search: _Search, slab: _Slabs | None = None) -> float:
    """(2) for one part, with λ and ν of its own; -inf where no factorisation proves the curvature."""
    weights, slopes, curvatures = network.weights, search.slopes[0], search.curvatures[0]
    matrix = (weights.T * curvatures) @ weights
    gradient = slopes @ weights
    ball, across = _multipliers(matrix, gradient, search, network.radius, slab)
    if slab is not None:
        gradient = gradient - across * (slab.low + slab.high) * slab.direction
        matrix = matrix - across * torch.outer(slab.direction, slab.direction)
    mass = (network.norms.square() * curvatures).sum().item() + across
    ball, slack, factor = _proven(matrix, ball, len(weights), mass)
    minimiser = torch.cholesky_solve(-gradient[:, None] / 2, factor).T
    multipliers = _Multipliers(*gradient.new_tensor([[ball], [across], [slack]]))
    return _value(network, point, search, minimiser, multipliers, slab).item()


def _proven(matrix: Float[Tensor, "d d"], ball: float, count: int, mass: float) -> tuple[float, float, Tensor]:
    """λ, raised until λI − matrix has a Cholesky factor; the ε for which λI − matrix + εI is semi-definite; the factor.

    mass: what the magnitudes that were summed into the matrix of `count` products can be at most, in the spectral norm.
    """
    ball = max(ball, 1e-12 * matrix.diagonal().abs().sum().item(), 1e-30)
    extra = 1e-7
    while True:
        raised = ball * (1 + extra)
        shifted = raised * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device) - matrix
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if not failed:
            break
        extra *= 10
    slack = _gamma(len(matrix) + 2) * shifted.diagonal().sum().item() + _gamma(count + 4) * (mass + raised)
    return raised, 2 * slack, factor


@dataclass(frozen=True)
class _Multipliers:
    """λ and ν, and the ε for which the curvature they leave is proven."""

    ball: Float[Tensor, " k"]
    across: Float[Tensor, " k"]
    slack: Float[Tensor, " k"]


def _value(
    network: _Network,
    points: _Points,
    search: _Search,
    minimiser: Float[Tensor, "k d"],
    multipliers: _Multipliers,
    slab: _Slabs | None = None,
) -> Float[Tensor, " k"]:
    """The right side of (2) by (4), all allowances taken off; neuron by neuron, so that only the weights enter."""
    slopes, curvatures, ball, across = search.slopes, search.curvatures, multipliers.ball, multipliers.across
    offsets = _offsets(search, points.before, network.biases)
    inner = minimiser @ network.weights.T
    lengths = minimiser.norm(dim=1)
    value = (slopes * inner - curvatures * inner.square() - offsets).sum(1)
    value = value + ball * (lengths.square() - network.radius**2)
    slope = (slopes - 2 * curvatures * inner) @ network.weights + 2 * ball[:, None] * minimiser
    if slab is not None:
        along = minimiser @ slab.direction
        value = value + across * (along - slab.low) * (along - slab.high)
        slope = slope + (across * (2 * along - slab.low - slab.high))[:, None] * slab.direction

    count, dim = network.weights.shape
    reach = (network.radius + lengths) * _WIDER
    ranges = network.norms * reach[:, None]
    summed = (slopes.abs() * ranges + 2 * curvatures * ranges.square() + offsets.abs()).sum(1)
    summed = summed + 4 * (ball + across) * reach.square()
    sizes = points.before.abs() + network.biases + search.high - search.low
    kinks = ((1 + slopes.abs() + 2 * curvatures * sizes) * sizes).sum(1)
    products = _gamma(dim + 1) * points.lengths * network.norms.sum()
    allowance = 8 * _gamma(count + dim + 64) * summed + 64 * _UNIT * kinks + 2 * products
    bound = value - slope.norm(dim=1) * reach - multipliers.slack * reach.square() - allowance
    return bound.nan_to_num(-math.inf, -math.inf, -math.inf)


def _gamma(count: int) -> float:
    return count * _UNIT / (1 - count * _UNIT)


def _offsets(search: _Search, before: Float[Tensor, "k m"], biases: Float[Tensor, " m"]) -> Float[Tensor, "k m"]:
    """(1): the largest excess of each parabola over h, at a summit or at an end of one of h's three pieces."""
    slopes, curvatures, low, high = search.slopes, search.curvatures, search.low, search.high
    first = torch.minimum(torch.maximum(-before - biases, low), high)
    second = torch.minimum(torch.maximum(biases - before, low), high)

    def excess(places: Tensor) -> Tensor:
        after = before + places
        return slopes * places - curvatures * places.square() - torch.relu(after - biases) + torch.relu(-after - biases)

    def summit(slope: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return excess(torch.minimum(torch.maximum(slope / (2 * curvatures).clamp(min=1e-300), left), right))

    largest = torch.maximum(excess(low), excess(high))
    for height in (
        excess(first),
        excess(second),
        summit(slopes - 1, low, first),
        summit(slopes, first, second),
        summit(slopes - 1, second, high),
    ):
        largest = torch.maximum(largest, height)
    return largest


def _multipliers(
    matrix: Float[Tensor, "d d"], gradient: Float[Tensor, " d"], search: _Search, radius: float, slab: _Slabs | None
) -> tuple[float, float]:
    """The λ and ν that maximise (2) on the Krylov space of Q from g, the adversary and v."""
    columns = [gradient[None], search.adversary[0].double()]
    if slab is not None:
        columns.append(slab.direction[None])
    basis = _krylov(matrix, torch.cat(columns).T)
    small = basis.T @ matrix @ basis
    slope = basis.T @ gradient
    if slab is None:
        return _ball_multiplier(small[None], slope[None], radius)[0].item(), 0.0
    normal = basis.T @ slab.direction
    scale = torch.linalg.eigvalsh(small)[-1].clamp(min=slope.norm() / (2 * radius))
    exponents = torch.linspace(-6, 4, 21, dtype=matrix.dtype, device=matrix.device)
    for spacing in (0.5, 0.05, 0.005):
        across = scale * torch.exp2(exponents)
        parts = small - across[:, None, None] * torch.outer(normal, normal)
        slopes = slope - (across * (slab.low + slab.high))[:, None] * normal
        ball, value = _ball_multiplier(parts, slopes, radius)
        best = int((value + across * slab.low * slab.high).argmax())
        found = ball[best].item(), across[best].item()
        exponents = exponents[best] + spacing * torch.linspace(-1, 1, 21, dtype=matrix.dtype, device=matrix.device)
    return found


def _krylov(matrix: Tensor, block: Tensor, size: int = 60) -> Tensor:
    """An orthonormal basis of the span of block, matrix @ block, matrix² @ block, …"""
    size = min(size, len(matrix))
    basis = torch.linalg.qr(block)[0][:, :size]
    while basis.shape[1] < size:
        fresh = matrix @ basis[:, -block.shape[1] :]
        for _ in range(2):  # once more, for orthogonality to working precision
            fresh = torch.linalg.qr(fresh - basis @ (basis.T @ fresh))[0]
        basis = torch.cat([basis, fresh[:, : size - basis.shape[1]]], 1)
    return basis


def _ball_multiplier(
    matrices: Float[Tensor, "k s s"], slopes: Float[Tensor, "k s"], radius: float
) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """The λ ≥ 0 that maximises min ⟨g, d⟩ + dᵀ(λI − Q)d − λτ², and that maximum: bisection on ‖d(λ)‖ = τ."""
    values, vectors = torch.linalg.eigh(matrices)
    parts = (vectors.mT @ slopes[:, :, None])[:, :, 0]
    low = values[:, -1].clamp(min=0)
    high = low + slopes.norm(dim=1) / (2 * radius)
    low = low + 1e-12 * high
    for _ in range(60):
        middle = (low + high) / 2
        long = (parts / (2 * (middle[:, None] - values))).norm(dim=1) > radius
        low, high = torch.where(long, middle, low), torch.where(long, high, middle)
    value = -(parts.square() / (4 * (high[:, None] - values)).clamp(min=1e-300)).sum(1) - high * radius**2
    return high, value
