"""A network built of pure features and a known mixture gives both back."""

import torch

from bessemer.purification.sparse_coding.data import SparseCoding
from bessemer.purification.sparse_coding.features import decomposition, features, live

SOURCE = SparseCoding(64, 4, spread=0.3, seed=2)


def mixture(size):
    return size * SOURCE.dense_direction


def test_a_planted_feature_and_mixture_are_given_back():
    weight = 2.0 * SOURCE.atoms[5] - 1.0 * SOURCE.atoms[9] + mixture(0.8)
    held = features(weight[None], SOURCE)
    inside = 0.8 * SOURCE.signal / SOURCE.signal.norm()  # of the mixture, atom by atom
    codes = inside.clone()
    codes[5] += 2.0
    codes[9] -= 1.0
    left = torch.cat([inside[:5], inside[6:9], inside[10:]])
    total = codes.square().sum()
    assert held.kept.item() == 2
    assert torch.allclose(held.purity, codes[5] ** 2 / total, atol=1e-5)
    assert torch.allclose(held.mixture_size, left.norm(), atol=1e-5)
    assert torch.allclose(held.mixture, left.square().sum() / total, atol=1e-5)
    assert torch.allclose(held.top3, codes.square().topk(3).values.sum() / total, atol=1e-5)
    cosine = torch.cosine_similarity(weight, SOURCE.dense_direction, dim=0).abs()
    assert torch.allclose(held.dense, cosine, atol=1e-5)


def test_the_ends_of_every_measure():
    pure, dense = features(SOURCE.atoms[:1], SOURCE), features(mixture(1.0)[None], SOURCE)
    assert torch.allclose(pure.purity, torch.ones(1), atol=1e-5)
    assert torch.allclose(dense.dense, torch.ones(1), atol=1e-5)
    assert pure.mixture.item() < 1e-8
    assert dense.kept.item() == 64


def test_what_was_removed_is_given_back():
    generator = torch.Generator().manual_seed(0)
    robust = SOURCE.atoms[:10] * torch.rand(10, 1, generator=generator).add(0.5)
    # v upright on w', as the shortest one is
    upright = SOURCE.dense_direction - (SOURCE.atoms[:10] @ SOURCE.dense_direction)[:, None] * SOURCE.atoms[:10]
    clean = 1.7 * robust + 0.3 * upright
    initial = torch.randn(10, 64, generator=generator)
    found = decomposition(initial, clean, robust, SOURCE)
    assert torch.allclose(found.beta, torch.full((10,), 1.7), atol=1e-4)
    assert torch.allclose(found.ratio, 1.7 * robust.norm(dim=1) / (0.3 * upright.norm(dim=1)), rtol=1e-3)
    assert torch.allclose(found.kept, torch.cosine_similarity(clean, robust), atol=1e-5)
    assert torch.allclose(found.after, torch.cosine_similarity(initial, robust).abs(), atol=1e-5)
    assert found.dense.min() > 0.98  # but for the atom that was kept
    assert found.signs.min() > 0.98


def test_live_neurons_fire_on_something():
    weights = torch.eye(3)
    inputs = torch.tensor([[0.9, -0.9, 0.1], [0.2, 0.0, 0.3]])
    assert live(weights, torch.tensor([1.0, 0.5, 0.2]), inputs).tolist() == [False, True, True]
