"""The record of a purification: what follows from it, and that a file gives it back."""

import math

import numpy as np
import pytest

from bessemer.errors import FileError
from bessemer.records import write_record
from bessemer.records.purification import NEURON_COLUMNS, Layer, Purification, below_by_chance, chance


def layer(name="conv", theta=(0.9, 0.6, 0.8), beta=(1.0, 1.0, -1.0), dead=(), explained=(0.5, 0.75), change=2.0):
    columns = {column: np.full(len(theta), math.nan) for column in NEURON_COLUMNS}
    theta = np.array(theta)
    columns |= {"clean_robust": theta, "removed": np.sqrt(1 - theta**2), "beta": np.array(beta)}
    return Layer(name, [3, 2], 2, columns, list(dead), [1, 2], list(explained), [0.6, 1.0], [0.55, 1.0], change)


def record(*layers):
    return Purification("clean run", "robust/run", "", "", "unknown", list(layers), ["a remark"], {"seconds": 1.5})


def test_outweighs_is_a_positive_beta_and_an_angle_under_45_degrees():
    found = layer()
    np.testing.assert_allclose(found.ratio, np.tan(np.arccos([0.9, 0.6, 0.8])))
    assert (found.outweighs().count, found.outweighs().total) == (1, 3)
    assert (layer(dead=[0]).outweighs().count, layer(dead=[0]).outweighs().total) == (0, 2)


def test_upright_weights_have_an_infinite_ratio():
    assert layer(theta=(0.0, 1.0, 0.5)).ratio.tolist() == [math.inf, 0.0, pytest.approx(math.sqrt(3))]


def test_the_whole_network_weighs_each_layer_by_its_change():
    found = record(layer(change=3.0), layer("fc", explained=(0.1, 1.0), change=1.0), layer("still", change=0.0))
    assert found.explained_at(1) == pytest.approx((3 * 0.5 + 0.1) / 4)
    assert found.explained_at(2) == 1  # full rank
    assert found.outweighs().total == 9
    assert math.isnan(record(layer(change=0.0)).explained_at(1))


def test_the_summary_has_a_row_per_layer_and_one_for_all():
    rows = record(layer(), layer("fc", theta=(0.2, 0.2, 0.2))).summary()
    assert [row["layer"] for row in rows] == ["conv", "fc", "all layers"]
    assert [row["clean_robust"] for row in rows] == [0.8, 0.2, pytest.approx(0.4)]
    assert rows[0]["chance"] == chance(2, 0.5)
    assert math.isnan(rows[0]["initial_clean"])


def test_a_file_gives_the_record_back(tmp_path):
    found = record(layer(dead=[1]), layer("fc", explained=(math.nan, math.nan), change=0.0))
    path = found.save(tmp_path)
    assert path.name == "purification_clean-run_robust-run.json"
    again = Purification.read(path)
    assert again.to_json() == found.to_json()
    np.testing.assert_allclose(again.layers[0]["removed"], found.layers[0]["removed"], rtol=1e-8)


def test_another_record_is_refused(tmp_path):
    write_record(tmp_path / "x.json", {"model": "no purification"})
    with pytest.raises(FileError, match="is no purification of this version"):
        Purification.read(tmp_path / "x.json")


# random directions


@pytest.mark.parametrize("size", [2, 3, 9, 100])
def test_chance_is_what_random_directions_do(size):
    vectors = np.random.default_rng(size).normal(size=(2, 40_000, size))
    theta = np.abs((vectors[0] * vectors[1]).sum(1)) / np.prod(np.linalg.norm(vectors, axis=2), axis=0)
    for share in (0.1, 0.5, 0.9, 0.99):
        assert chance(size, share) == pytest.approx(np.quantile(theta, share), rel=0.05)
        assert below_by_chance(size, chance(size, share)) == pytest.approx(share)


def test_chance_has_closed_forms_in_the_plane_and_in_space():
    assert chance(2, 0.5) == pytest.approx(math.cos(math.pi / 4))  # the angle is uniform
    assert chance(3, 0.3) == pytest.approx(0.3)  # Archimedes: the cosine is uniform


def test_one_number_has_no_direction():
    assert chance(1, 0.01) == 1
    assert below_by_chance(1, [0.0, 0.99, 1.0]).tolist() == [0, 0, 1]
