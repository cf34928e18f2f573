"""Each measure against a closed form: one pixel, a constant, noise, a wave, a planted basis."""

import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from scipy.ndimage import sobel
from torch import nn

from bessemer.attacks import FGSM
from bessemer.errors import ImagesError, UsageError
from bessemer.purification import perturbations as seen
from bessemer.threat import L2, Linf


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def one_pixel(shape=(3, 8, 8)):
    image = torch.zeros(1, *shape)
    image[0, 1 % shape[0], 2, 5] = -3
    return image


NOISE = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("power", [1, 2])
def test_participation_of_what_is_known(power):
    assert seen.participation(one_pixel(), power).item() == pytest.approx(1 / 192)
    assert seen.participation(torch.full((1, 3, 8, 8), -0.2), power).item() == pytest.approx(1)
    half = torch.zeros(1, 10)
    half[0, :5] = torch.tensor([1.0, -1, 1, 1, -1])
    assert seen.participation(half, power).item() == pytest.approx(0.5)
    expected = {1: 2 / math.pi, 2: 1 / 3}[power]
    assert seen.participation(NOISE, power).mean().item() == pytest.approx(expected, rel=0.01)


def test_participation_written_out():
    d = NOISE[:2].double().flatten(1)
    n = d.shape[1]
    torch.testing.assert_close(seen.participation(NOISE[:2].double()), d.norm(dim=1) ** 4 / (n * d.norm(4, dim=1) ** 4))
    torch.testing.assert_close(
        seen.participation(NOISE[:2].double(), 1), d.norm(1, dim=1) ** 2 / (n * d.norm(dim=1) ** 2)
    )


def test_hoyer_of_what_is_known():
    assert seen.hoyer(one_pixel()).item() == pytest.approx(1)
    assert seen.hoyer(torch.full((1, 3, 8, 8), 0.2)).item() == pytest.approx(0, abs=1e-6)
    root = math.sqrt(NOISE[0].numel())
    expected = (root - root * math.sqrt(2 / math.pi)) / (root - 1)
    assert seen.hoyer(NOISE).mean().item() == pytest.approx(expected, rel=0.01)


def test_the_cosine_transform_is_scipys():
    images = torch.rand(2, 3, 7, 10, dtype=torch.float64)
    np.testing.assert_allclose(seen.dct(images).numpy(), dctn(images.numpy(), axes=(2, 3), norm="ortho"), atol=1e-12)


def test_high_frequencies_of_what_is_known():
    assert seen.high_frequencies(torch.ones(1, 3, 8, 8)).item() == pytest.approx(0, abs=1e-6)
    checks = (-1.0) ** (torch.arange(8)[:, None] + torch.arange(8)).expand(1, 3, 8, 8)
    assert seen.high_frequencies(checks).item() > 0.8
    assert seen.high_frequencies(NOISE).mean().item() == pytest.approx(0.75, rel=0.01)
    for frequency, expected in ((3, 0), (4, 1)):  # of 8: the upper half begins at 4
        wave = torch.cos(math.pi / 8 * (torch.arange(8) + 0.5) * frequency).expand(1, 1, 8, 8)
        assert seen.high_frequencies(wave).item() == pytest.approx(expected, abs=1e-5)


def test_colour_of_what_is_known():
    assert seen.colour(torch.rand(2, 1, 8, 8).expand(2, 3, 8, 8)).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert seen.colour(one_pixel()).item() == pytest.approx(2 / 3)
    assert seen.colour(torch.tensor([1.0, -1, 0]).view(1, 3, 1, 1)).item() == pytest.approx(1)
    assert seen.colour(NOISE).mean().item() == pytest.approx(2 / 3, rel=0.01)
    with pytest.raises(ImagesError, match="only RGB"):
        seen.colour(torch.rand(1, 1, 4, 4))


def test_cosine_of_what_is_known():
    one = NOISE[:4]
    torch.testing.assert_close(seen.cosine(one, one), torch.ones(4))
    torch.testing.assert_close(seen.cosine(one, -1e-25 * one), -torch.ones(4))
    chance = seen.cosine(NOISE[:20], NOISE[20:])
    assert chance.square().mean().sqrt().item() == pytest.approx(1 / math.sqrt(3072), rel=0.4)


def test_edges_are_sobels():
    images = torch.rand(2, 3, 9, 7, dtype=torch.float64)
    for found, grey in zip(seen.edges(images).numpy(), images.mean(1).numpy(), strict=True):
        expected = np.hypot(sobel(grey, 0, mode="nearest"), sobel(grey, 1, mode="nearest")) / 8
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_edges_of_a_ramp_are_its_slope():
    ramp = (0.1 * torch.arange(6.0)).expand(1, 1, 6, 6)
    torch.testing.assert_close(seen.edges(ramp)[:, :, 1:-1], torch.full((1, 6, 4), 0.1))


def test_what_lies_on_edges_is_told_from_what_does_not():
    images = torch.nn.functional.interpolate(torch.rand(40, 3, 4, 4), 32, mode="nearest")
    drawn = seen.edges(images)[:, None] * torch.randn(40, 3, 1, 1).sign()
    torch.testing.assert_close(seen.on_edges(drawn, images), torch.ones(40))
    assert abs(seen.on_edges(NOISE, images).mean()) < 0.03
    inverted = (seen.edges(images).amax() - seen.edges(images))[:, None].expand_as(images)
    torch.testing.assert_close(seen.on_edges(inverted, images), -torch.ones(40))


def test_no_measure_sees_size_or_sign():
    images = torch.rand(4, 3, 16, 16)
    basis = seen.learned_basis(images, patch=4, rounds=2)
    drawn = torch.randn(4, 3, 16, 16)
    plain, tiny = seen.measured(drawn, images, basis), seen.measured(-1e-20 * drawn, images, basis)
    assert len(plain) == 13
    for name, values in plain.items():
        assert values.shape == (4,)
        torch.testing.assert_close(values, tiny[name], atol=1e-4, rtol=1e-4)


def test_a_learned_basis_is_orthonormal_and_keeps_lengths():
    images = torch.rand(30, 3, 16, 16)
    basis = seen.learned_basis(images, patch=4, rounds=5)
    assert basis.shape == (48, 3, 4, 4)
    flat = basis.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(48), atol=1e-5, rtol=0)
    coefficients = seen.in_basis(images, basis)
    torch.testing.assert_close(coefficients.flatten(1).norm(dim=1), images.flatten(1).norm(dim=1))
    torch.testing.assert_close(coefficients[0, 5, 1, 2], (basis[5] * images[0, :, 4:8, 8:12]).sum())


def test_a_planted_unitary_dictionary_is_found():
    generator = torch.Generator().manual_seed(3)
    planted = torch.linalg.qr(torch.randn(48, 48, generator=generator)).Q
    codes = torch.randn(20_000, 48, generator=generator) * (torch.rand(20_000, 48, generator=generator) < 0.1)
    patches = (codes @ planted).view(-1, 3, 4, 4)  # each image is one patch
    basis = seen.learned_basis(patches, patch=4)
    overlap = (basis.flatten(1) @ planted.T).abs()
    assert (overlap.amax(1) > 0.98).all()
    assert len(set(overlap.argmax(1).tolist())) == 48
    sparse = seen.hoyer(seen.in_basis(patches, basis)).nanmean()
    assert sparse > seen.hoyer(patches).nanmean() + 0.3


def test_noise_is_as_large_as_what_it_stands_for():
    drawn = torch.randn(5, 3, 8, 8) * torch.rand(5, 1, 1, 1)
    noise = seen.noise_like(drawn, seed=2)
    torch.testing.assert_close(noise.flatten(1).norm(dim=1), drawn.flatten(1).norm(dim=1))
    assert torch.equal(noise[:2], seen.noise_like(drawn[:2], seed=2))


def test_perturbations_are_what_the_attack_adds():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    images, labels = 0.25 + 0.5 * torch.rand(3, 3, 2, 2), torch.tensor([0, 1, 0])
    found = seen.perturbations(model, images, labels, FGSM(Linf(0.1)))
    slope = model[1].weight[1] - model[1].weight[0]
    expected = 0.1 * slope.sign() * torch.where(labels == 0, 1, -1)[:, None]
    torch.testing.assert_close(found, expected.view(3, 3, 2, 2))
    for attack in (FGSM(L2(0.3)), FGSM(Linf(0.1))):
        assert attack.threat.size(seen.perturbations(model, images, labels, attack)).max() <= attack.threat.eps + 1e-6


def test_what_does_not_fit_is_refused():
    images = torch.rand(2, 3, 16, 16)
    basis = seen.learned_basis(images, patch=4, rounds=1)
    with pytest.raises(ImagesError, match="are not of images"):
        seen.measured(images[:1], images, basis)
    with pytest.raises(UsageError, match="no perturbations"):
        seen.measured(images[:0], images[:0], basis)
    with pytest.raises(ImagesError, match="do not fit images"):
        seen.in_basis(images[:, :1], basis)
    with pytest.raises(ImagesError, match="do not fit into images"):
        seen.learned_basis(images, patch=17)
