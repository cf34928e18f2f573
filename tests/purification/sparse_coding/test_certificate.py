"""The certificate against attacks, closed forms, planted networks and a grid: it is never wrong, and it is tight."""

from __future__ import annotations

import math

import pytest
import torch

from bessemer.errors import UsageError
from bessemer.purification.sparse_coding import certificate
from bessemer.purification.sparse_coding.certificate import STAGES, certify

SEED = 5
CERTIFIED = [STAGES.index(name) for name in ("shared", "dual", "split")]


def score(weights, biases, inputs):
    before = inputs.double() @ weights.double().T
    return (torch.relu(before - biases) - torch.relu(-before - biases)).sum(1)


def attack(weights, biases, inputs, labels, radius, steps=40, restarts=8):
    """The least y f that projected gradient descent finds in the ball, in float64."""
    generator = torch.Generator().manual_seed(SEED)
    sign = (2 * labels - 1).double()
    weights, biases, inputs = weights.double(), biases.double(), inputs.double()
    least = sign * score(weights, biases, inputs)
    for restart in range(restarts):
        change = torch.randn(inputs.shape, generator=generator, dtype=torch.float64)
        change *= radius * (restart > 0) / change.norm(dim=1, keepdim=True)
        for step in range(steps):
            before = (inputs + change) @ weights.T
            gradient = sign[:, None] * ((before.abs() > biases).double() @ weights)
            size = 2 * radius * (1 - step / steps)
            change = change - size * gradient / gradient.norm(dim=1, keepdim=True).clamp(min=1e-30)
            change = change * (radius / change.norm(dim=1, keepdim=True).clamp(min=1e-30)).clamp(max=1)
            least = torch.minimum(least, sign * score(weights, biases, inputs + change))
    return least


def mixtures(dim, pairs, seed, noise=0.1, threshold=0.25):
    """Neurons of two atoms and some noise, as training leaves them, and samples of four active atoms."""
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0]
    first, second = torch.randint(dim, (2, pairs), generator=generator)
    weights = atoms[first] + 0.4 * atoms[second] + noise * torch.randn(pairs, dim, generator=generator) / dim**0.5
    codes = torch.rand(40, dim, generator=generator).argsort(1) < 4
    signs = torch.randint(2, (40, dim), generator=generator) * 2 - 1
    inputs = (codes * signs).float() @ atoms
    biases = threshold * torch.rand(pairs, generator=generator)
    labels = (score(weights, biases, inputs) > 0).long()
    return weights, biases, inputs, labels


def test_no_attack_ever_contradicts_it():
    cases = 0
    for seed, (dim, pairs) in enumerate(((2, 3), (5, 4), (8, 30), (24, 24), (24, 100), (40, 20))):
        weights, biases, inputs, labels = mixtures(dim, pairs, seed, threshold=(0.0, 0.3, 0.6)[seed % 3])
        labels[:2] = 1 - labels[:2]
        for radius in (0.0, 0.02, 0.1, 0.2, 0.3, 0.4, 0.6, 1.0, 3.0):
            found = certify(weights, biases, inputs, labels, radius)
            assert (found.bound <= attack(weights, biases, inputs, labels, radius)).all()
            assert torch.equal(found.certified, found.bound > 0)
            assert torch.equal(found.certified, torch.isin(found.stage, torch.tensor(CERTIFIED)))
            cases += len(inputs)
    assert cases > 2000


@pytest.mark.parametrize("stage", ["dual", "split"])
def test_the_later_stages_are_never_wrong_either(stage, monkeypatch):
    """Each is made to decide every sample, also those that an earlier one would have taken from it."""
    nothing = torch.tensor(-math.inf, dtype=torch.float64)
    dual = certificate._dual
    monkeypatch.setattr(certificate, "_shared", lambda network, points, search: nothing.expand(len(points.lengths)))
    monkeypatch.setattr(certificate._Network, "turned", lambda network, point, search: False)
    if stage == "split":
        monkeypatch.setattr(certificate, "_dual", lambda *given: dual(*given) if len(given) == 4 else -math.inf)
    decided = 0
    for seed, (dim, pairs) in enumerate(((1, 2), (6, 12), (24, 50))):
        weights, biases, inputs, labels = mixtures(dim, pairs, seed, threshold=0.5)
        inputs, labels = inputs[:15], labels[:15]
        for radius in (0.1, 0.4, 0.8):
            found = certify(weights, biases, inputs, labels, radius)
            assert (found.bound <= attack(weights, biases, inputs, labels, radius)).all()
            decided += (found.stage == STAGES.index(stage)).sum()
    assert decided > 40


def test_a_split_proves_what_the_ball_as_a_whole_does_not():
    split = 0
    for dim, pairs, seed, radius in ((24, 100, 1, 0.3), (40, 40, 2, 0.15), (64, 100, 1, 0.2)):
        found = certify(*mixtures(dim, pairs, seed, threshold=0.5), radius)
        split += (found.stage == STAGES.index("split")).sum()
    assert split > 0


def test_a_split_that_fails_says_nothing_of_the_slabs_it_left_out(monkeypatch):
    nothing = torch.tensor(-math.inf, dtype=torch.float64)
    monkeypatch.setattr(certificate, "_shared", lambda network, points, search: nothing.expand(len(points.lengths)))
    monkeypatch.setattr(certificate._Network, "turned", lambda network, point, search: False)
    monkeypatch.setattr(certificate, "_dual", lambda network, point, search, slab=None: -0.1 if slab else -5.0)
    found = certify(*mixtures(6, 8, 1), 0.2)
    assert (found.stage == STAGES.index("open")).all()
    assert (found.bound / certificate._power_of_two(mixtures(6, 8, 1)[0]) == -5).all()


@pytest.mark.parametrize("top", [0.0, 1e-8, 3.0, 1e6])
def test_a_multiplier_is_raised_until_the_curvature_is_proven(top):
    generator = torch.Generator().manual_seed(SEED)
    turn = torch.linalg.qr(torch.randn(9, 9, generator=generator, dtype=torch.float64))[0]
    matrix = (turn * torch.linspace(-top, top, 9, dtype=torch.float64)) @ turn.T
    for guess in (0.0, 0.5 * top, 0.999 * top, 2 * top):
        ball, slack, factor = certificate._proven(matrix, guess, 9, 9 * top)
        assert ball + slack >= top
        assert ball >= guess
        shifted = ball * torch.eye(9, dtype=torch.float64) - matrix
        torch.testing.assert_close(factor @ factor.T, shifted, rtol=1e-9, atol=1e-9 * top + 1e-30)


def test_gaussian_networks_are_no_exception():
    generator = torch.Generator().manual_seed(SEED)
    for dim, pairs, spread in ((1, 1, 1.0), (2, 8, 3.0), (6, 3, 0.01), (16, 40, 1.0)):
        weights = spread * torch.randn(pairs, dim, generator=generator)
        biases = spread * torch.rand(pairs, generator=generator)
        inputs = torch.randn(30, dim, generator=generator)
        labels = (score(weights, biases, inputs) > 0).long()
        for radius in (0.05, 0.4, 2.0):
            found = certify(weights, biases, inputs, labels, radius)
            assert (found.bound <= attack(weights, biases, inputs, labels, radius)).all()


def test_on_a_dense_grid_in_two_dimensions():
    weights, biases, inputs, labels = mixtures(2, 6, 1, threshold=0.5)
    angle = torch.linspace(0, 2 * math.pi, 721, dtype=torch.float64)
    directions = torch.stack([angle.cos(), angle.sin()], 1)
    for radius in (0.1, 0.3):
        ball = (torch.linspace(0, radius, 60, dtype=torch.float64)[:, None, None] * directions).reshape(-1, 2)
        points = inputs.double()[:, None] + ball
        values = score(weights, biases, points.reshape(-1, 2)).reshape(len(inputs), -1)
        least = ((2 * labels - 1)[:, None] * values).amin(1)
        found = certify(weights, biases, inputs, labels, radius)
        assert (found.bound <= least).all()
        assert (found.certified == (least > 0)).double().mean() > 0.9


def test_without_a_kink_in_reach_it_is_the_margin_less_the_radius_times_the_gradient():
    weights, biases, inputs, labels = mixtures(20, 30, 2)
    before = inputs.double() @ weights.double().T
    reach = ((before.abs() - biases).abs() / weights.norm(dim=1)).amin(1)
    for sample in range(10):
        radius = 0.99 * reach[sample].item()
        found = certify(weights, biases, inputs[sample : sample + 1], labels[sample : sample + 1], radius)
        gradient = (before[sample].abs() > biases).double() @ weights.double()
        sign = 2 * labels[sample] - 1
        exact = sign * score(weights, biases, inputs[sample : sample + 1]) - radius * gradient.norm()
        torch.testing.assert_close(found.bound, exact, rtol=1e-6, atol=1e-6)
        assert (found.bound <= exact).all()


def test_without_thresholds_the_network_is_linear_and_the_bound_is_exact():
    weights, biases, inputs, labels = mixtures(12, 20, 3, threshold=0.0)
    norm = weights.double().sum(0).norm()
    found = certify(weights, biases, inputs, labels, 0.3)
    torch.testing.assert_close(found.bound, found.margin - 0.3 * norm, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("radius", [0.1, 0.4, 1.0, 1.4])
def test_of_one_neuron_the_least_value_is_at_the_end_of_its_range(radius):
    weights, biases = torch.tensor([[1.2, -1.6]]), torch.tensor([0.5])
    inputs = torch.tensor([[0.9, -0.7], [-0.4, 0.2], [0.6, -0.1], [-1.5, 1.0]])
    labels = torch.tensor([1, 0, 1, 0])
    before = (inputs.double() @ weights.double().T)[:, 0].abs() - 2 * radius
    exact = torch.relu(before - 0.5) - torch.relu(-before - 0.5)
    found = certify(weights, biases, inputs, labels, radius)
    assert (found.bound <= exact).all()
    assert torch.equal(found.certified, exact > 1e-6)


@pytest.mark.parametrize(("radius", "threshold"), [(0.3, 0.4), (0.5, 0.05), (0.9, 0.1)])
def test_a_network_of_pure_atoms_has_a_minimum_in_closed_form(radius, threshold):
    """Of k active atoms and j others that the perturbation wakes, it takes radius √(k + j) − j · threshold."""
    dim, active = 30, 9
    weights = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(SEED)))[0]
    woken = torch.arange(dim - active + 1, dtype=torch.float64)
    taken = (radius * (active + woken).sqrt() - woken * threshold).amax()
    for left in (0.05, 0.5):  # of what it takes; the active atoms stay above their thresholds
        height = threshold + (1 + left) * taken.item() / active
        assert height > threshold + radius / active**0.5
        inputs = height * weights[:active].sum(0, keepdim=True)
        found = certify(weights, torch.full((dim,), threshold), inputs, torch.tensor([1]), radius)
        assert found.bound.item() <= left * taken + 1e-6
        assert found.bound.item() >= (left - 0.01) * taken


def test_what_holds_at_a_radius_holds_at_every_smaller_one():
    weights, biases, inputs, labels = mixtures(24, 48, 4, threshold=0.4)
    held = torch.ones(len(inputs), dtype=torch.bool)
    shares = []
    for radius in torch.linspace(0, 2, 15).tolist():
        certified = certify(weights, biases, inputs, labels, radius).certified
        assert (held | ~certified).all()
        held = certified
        shares.append(certified.double().mean().item())
    assert shares[0] == 1
    assert shares[-1] == 0
    assert len(set(shares)) > 4


def test_it_is_tight_on_features_of_few_atoms():
    weights, biases, inputs, labels = mixtures(48, 96, 6, threshold=0.4)
    for radius in (0.2, 0.4, 0.6):
        certified = certify(weights, biases, inputs, labels, radius).certified
        stands = attack(weights, biases, inputs, labels, radius) > 0
        assert (stands | ~certified).all()
        assert certified.sum() >= 0.8 * stands.sum()


def test_both_classes_are_alike_and_the_scale_of_the_network_does_not_matter():
    weights, biases, inputs, labels = mixtures(16, 30, 7)
    found = certify(weights, biases, inputs, labels, 0.3)
    mirrored = certify(weights, biases, -inputs, 1 - labels, 0.3)
    torch.testing.assert_close(found.bound, mirrored.bound)
    for scale in (2.0**-60, 2.0**60):
        scaled = certify(scale * weights, scale * biases, inputs, labels, 0.3)
        torch.testing.assert_close(found.bound, scaled.bound / scale)


def test_the_samples_that_are_wrong_already_get_no_bound():
    weights, biases, inputs, labels = mixtures(16, 30, 8)
    found = certify(weights, biases, inputs, 1 - labels, 0.1)
    wrong = found.margin <= 0
    assert wrong.any()
    assert (found.bound[wrong] == -math.inf).all()
    assert (found.stage[wrong] == STAGES.index("misclassified")).all()
    assert not found.certified[wrong].any()


def test_whoever_watches_sees_the_samples_decided():
    weights, biases, inputs, labels = mixtures(8, 12, 9)
    seen = []
    certify(weights, biases, inputs.repeat(3, 1), labels.repeat(3), 0.1, watch=lambda *counts: seen.append(counts))
    assert seen[-1] == (120, 120)
    assert seen == sorted(seen)
    assert len(seen) > 2
    assert certify(weights, biases, inputs[:0], labels[:0], 0.1).certified.shape == (0,)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": torch.ones(3)}, r"weights \(m, d\) and biases \(m,\)"),
        ({"biases": torch.ones(4)}, r"not \(3, 2\) and \(4,\)"),
        ({"inputs": torch.ones(5, 3)}, r"inputs must be \(n, 2\)"),
        ({"labels": torch.ones(4, dtype=torch.long)}, "5 inputs need as many labels"),
        ({"labels": torch.tensor([1, -1, 1, -1, 1])}, "classes 0 and 1"),
        ({"labels": torch.ones(5)}, "classes 0 and 1"),
        ({"inputs": torch.full((5, 2), math.nan)}, "must be finite"),
        ({"biases": torch.tensor([0.1, -0.2, 0.3])}, "0 or more, not -0.2"),
        ({"radius": -0.1}, "radius must be 0 or more"),
        ({"radius": math.inf}, "radius must be 0 or more and finite"),
        ({"radius": math.nan}, "radius must be 0 or more"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(changes, words):
    good = {
        "weights": torch.ones(3, 2),
        "biases": torch.ones(3),
        "inputs": torch.ones(5, 2),
        "labels": torch.ones(5, dtype=torch.long),
        "radius": 0.1,
    }
    with pytest.raises(UsageError, match=words):
        certify(**(good | changes))
