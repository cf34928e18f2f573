import math

import pytest
import torch

from bessemer.errors import UsageError
from bessemer.purification.sparse_coding.data import SPIKE, Codes, SparseCoding, Stream


def test_the_dictionary_is_unitary_and_the_dense_direction_is_m_w_star():
    source = SparseCoding(48, 5, spread=0.5, seed=3)
    atoms = source.atoms.double()
    assert torch.allclose(atoms @ atoms.T, torch.eye(48, dtype=torch.float64), atol=1e-5)
    expected = torch.stack([source.signal[j] * source.atoms[j] for j in range(48)]).sum(0)
    assert torch.allclose(source.dense_direction, expected / expected.norm(), atol=1e-6)
    assert source.signal.abs().min() >= 0.5
    assert source.signal.abs().max() <= 1.5


def test_samples_are_codes_times_atoms_labelled_by_the_signal():
    source = SparseCoding(40, 4, noise=0.0, margin=0.6)
    drawn = source.draw(500, seed=1)
    codes = drawn.codes.dense(40)
    assert torch.allclose(drawn.inputs, codes @ source.atoms, atol=1e-5)
    scores = codes @ source.signal
    assert torch.equal(drawn.labels, (scores > 0).long())
    assert scores.abs().min() >= 0.6 - 1e-6


def test_large_and_small_coordinates_come_as_often_as_the_model_says():
    source = SparseCoding(200, 10, margin=0.0)
    codes = source.draw(20_000, seed=5).codes.dense(200)
    large, small = (codes.abs() == 1).double().mean().item(), (codes.abs() - 10**-0.5).abs() < 1e-6
    cells = codes.numel()
    # a sample of score 0 has no label and is left out, which changes little
    assert large == pytest.approx(1 / 200, abs=6 * math.sqrt(1 / 200 / cells) + 2e-4)
    assert small.double().mean().item() == pytest.approx(10 / 200, abs=6 * math.sqrt(10 / 200 / cells) + 2e-3)
    assert abs((codes > 0).sum().item() / (codes != 0).sum().item() - 0.5) < 0.01
    assert codes.square().sum(1).mean().item() == pytest.approx(2, abs=0.1)


def test_noise_has_the_variance_it_is_given():
    silent, loud = SparseCoding(100, 5, noise=0.0), SparseCoding(100, 5, noise=0.5)
    noise = loud.draw(4000, 0).inputs - silent.draw(4000, 0).inputs
    assert noise.square().sum(1).mean().item() == pytest.approx(0.25, rel=0.02)
    spiky = SparseCoding(100, 5, noise=0.0, spikes=0.4)
    spikes = (spiky.draw(4000, 0).inputs - silent.draw(4000, 0).inputs) @ spiky.atoms.T
    assert spikes.square().sum(1).mean().item() == pytest.approx(0.16, rel=0.1)
    sizes = spikes.abs()[spikes.abs() > 1e-4]
    multiples = sizes / 5**-SPIKE
    assert torch.allclose(multiples, multiples.round(), atol=1e-3)


def test_a_seed_is_a_sample():
    source = SparseCoding(60, 4)
    assert torch.equal(source.draw(50, 7).inputs, source.draw(50, 7).inputs)
    assert not torch.equal(source.draw(50, 7).inputs, source.draw(50, 8).inputs)


def test_sparse_rows_are_cut_joined_and_multiplied_as_a_matrix_is():
    codes = SparseCoding(30, 3, margin=0.0).draw(20, 0).codes
    dense, matrix = codes.dense(30), torch.randn(30, 7, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(codes.times(matrix), dense @ matrix, atol=1e-5)
    rows = torch.tensor([1, 4, 19])
    assert torch.equal(codes.at(rows).dense(30), dense[rows])
    assert torch.equal(Codes.joined([codes, codes.at(rows)]).dense(30), torch.cat([dense, dense[rows]]))


def test_a_stream_goes_on_where_its_position_says():
    source = SparseCoding(30, 3)
    stream = Stream(source, 10, seed=1)
    first, second = stream.next(), stream.next()
    assert not torch.equal(first.images, second.images)
    again = Stream(source, 10, seed=1)
    again.position = 10
    assert torch.equal(again.next().images, second.images)


def test_a_fixed_sample_is_drawn_once():
    source = SparseCoding(30, 3)
    stream = Stream(source, 40, seed=1, sample=12)
    rows = torch.cat([stream.next().images for _ in range(5)])
    assert len(torch.unique(rows, dim=0)) == 12


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dim": 10, "sparsity": 10}, "10 coordinates cannot have 10"),
        ({"dim": 10, "sparsity": 12}, "cannot have 12"),
        ({"dim": 10, "sparsity": 3, "noise": -1.0}, "not be negative"),
        ({"dim": 10, "sparsity": 3, "spread": 1.0}, "spread"),
        ({"dim": 10, "sparsity": 3, "margin": 5.0}, "margin"),
        ({"dim": 10, "sparsity": 8, "spikes": 2.0}, "spikes"),
    ],
)
def test_what_cannot_be_drawn_is_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        SparseCoding(**settings)


def test_within_reach_lie_two_codes_of_different_labels():
    source = SparseCoding(400, 6, margin=1.0)
    scores = (source.draw(4000, 3).codes.dense(400) @ source.signal).abs()
    # median score s: n = 2 s sqrt(k) more coordinates of 1/sqrt(k) turn +s into −s, at distance sqrt(n / k)
    count = 2 * scores.median().item() * math.sqrt(6)
    assert source.reach == pytest.approx(math.sqrt(count / 6) / 2, rel=0.05)
