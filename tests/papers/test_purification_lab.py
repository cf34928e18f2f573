"""The laboratory's experiment at the scale smoke: that it says what it found, not what it found."""

import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from bessemer.cli.main import app
from bessemer.errors import UsageError
from bessemer.papers.feature_purification import laboratory
from bessemer.purification.sparse_coding.training import Thresholds


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def result(runs):
    return laboratory.run("smoke", runs)


def test_every_claim_has_its_figure_and_the_deviations_are_told(result):
    assert len(result.claims) >= 15
    assert all(re.search(r"\d", claim.value) for claim in result.claims)
    assert list(laboratory.DEVIATIONS) == result.numbers["deviations"]
    assert not re.search("NaN|Infinity", json.dumps(result.numbers))


def test_claims_follow_the_numbers(result):
    found = result.numbers["d32-k6-seed0"]
    claim = next(one for one in result.claims if "at most 5 % of the clean network" in one.text)
    assert claim.holds == (found["accuracy"]["clean"]["worst"] <= 0.05)
    assert f"{100 * found['accuracy']['clean']['worst']:.3g} %" in claim.value


def test_the_page_holds_every_sentence_claim_and_picture(runs, result):
    page = (runs / "purification-lab-smoke.html").read_text()
    pictures = sorted(path.name for path in runs.glob("purification-lab-smoke-*.png"))
    assert page.count("data:image/png;base64,") == len(pictures) == 4
    assert page.count('<span class="held">') + page.count('<span class="failed">') == len(result.claims)
    assert "<script" not in page
    assert page.count("alt=") == len(pictures)


def test_intervals_are_students(monkeypatch):
    assert laboratory.over_seeds([0.97, 0.98, 0.99], percent=True) == "98 ± 2.5 %"  # 4.303 · 1 / sqrt(3)
    assert laboratory.over_seeds([0.5]) == "0.5 (one seed)"


def test_thresholds_and_radius_follow_the_dimension():
    assert laboratory.laboratory(1024).thresholds == Thresholds(4.0, 3.6, 0.6, 0.5)
    assert laboratory.laboratory(100).threat.eps == 0.2
    assert laboratory.laboratory(2500).threat.eps == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bang-table1", "--dim", "64"], "belong to purification-lab"),
        (["purification-lab", "--sparsity", "4"], "needs a --dim"),
        (["purification-lab", "--scale", "smoke", "--dim", "16", "--sparsity", "20"], "cannot have 20"),
        (["purification-lab", "--scale", "tiny"], "smoke"),
    ],
)
def test_wrong_use_is_one_sentence(arguments, words, tmp_path):
    outcome = CliRunner().invoke(app, ["reproduce", *arguments, "--out", str(tmp_path), "--runs", str(tmp_path / "r")])
    assert isinstance(outcome.exception, UsageError)
    assert words in str(outcome.exception)


def planted(ratio):
    """What the scaling claim reads of experiments, with the radii that a law would give."""
    labs = {f"d{d}-k{k}-seed0": laboratory.laboratory(d, k) for d in (256, 512, 1024) for k in (4, 8)}
    found = {
        name: {"radii": {"clean": {"r50": 0.1}, "robust": {"r50": 0.1 * ratio(lab.source.dim, lab.source.sparsity)}}}
        for name, lab in labs.items()
    }
    return laboratory.Outcome(labs, found)


def test_the_scaling_claim_knows_the_law_from_another():
    (holds,) = planted(lambda d, k: 0.3 * (d / k) ** 0.5).scaling()
    (fails,) = planted(lambda d, k: 0.3 * d**0.25).scaling()
    assert holds.holds is True  # not NumPy's, which no JSON knows
    assert fails.holds is False
    assert holds.value.startswith("1.00 ± 0.00 over 6 settings")


def test_the_slope_has_students_interval():
    settings = [(256, 4), (256, 8), (512, 4), (512, 8), (1024, 4), (1024, 8)]
    wobble = dict(zip(settings, (1.1, 0.9, 1.2, 1.0, 0.8, 1.05), strict=True))
    (claim,) = planted(lambda d, k: wobble[d, k] * (d / k) ** 0.5).scaling()
    size = np.log([(d / k) ** 0.5 for d, k in settings])
    gap = size + np.log([wobble[setting] for setting in settings])
    slope, start = np.polyfit(size, gap, 1)
    error = np.sqrt(np.square(gap - start - slope * size).sum() / 4 / np.square(size - size.mean()).sum())
    assert claim.value.startswith(f"{slope:.2f} ± {2.776445 * error:.2f} over 6 settings")  # t(4), 97.5 %


@pytest.mark.parametrize(("cubes", "expected"), [(0.01, [False, True]), (0.8, [True, True]), (0.97, [True, False])])
def test_the_exception_stands_more_than_the_others_and_less_than_the_network(cubes, expected):
    found = {
        "perturbations": {},
        "accuracy": {"robust": {"worst": 0.95}},
        "comparisons": {"linear": {"clean": {"all": 0.1}}, "cubes of the true atoms": {"clean": {"all": cubes}}},
    }
    outcome = laboratory.Outcome({"d512-k6-seed0": laboratory.laboratory(512, 6)}, {"d512-k6-seed0": found})
    assert [claim.holds for claim in outcome.others()] == [True, *expected]
