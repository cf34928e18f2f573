import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from bessemer.errors import FileError
from bessemer.records import (
    COLUMNS,
    NOT_TRIED,
    AttackRows,
    Curve,
    Evaluation,
    Exhibit,
    Finding,
    Share,
    wilson,
    write_record,
)

NAN = math.nan


def attack(name, kind, prediction, linf, pass_score, zero_gradients=(0, 0, 0, 0, 0, 0)):
    columns = {column: np.zeros(6, dtype) for column, dtype in COLUMNS.items()}
    columns["prediction"] = np.array(prediction)
    columns["linf"] = np.array(linf, np.float64)
    columns["pass_score"] = np.array(pass_score, np.float64)
    columns["zero_gradients"] = np.array(zero_gradients)
    return AttackRows(name, f"{name}()", kind, "Linf:0.1" if kind == "bounded" else "", columns)


@pytest.fixture
def evaluation():
    """Six images, the last of them wrong from the start; A turns image 0, B images 1 and 2, C all."""
    pixels = np.linspace(0, 1, 4, dtype=np.float32).reshape(1, 2, 2)
    return Evaluation(
        model="m",
        data="d",
        suite="s",
        threat="Linf:0.1",
        seed=3,
        classes=["zero", "one"],
        index=np.array([10, 11, 12, 13, 14, 15]),
        label=np.array([0, 1, 0, 1, 0, 1]),
        prediction=np.array([0, 1, 0, 1, 0, 0]),
        attacks=[
            attack("A", "bounded", [1, 1, 0, 1, 0, 0], [0.1] * 6, [NAN] * 6, [2, 0, 0, 0, 0, 1]),
            # it makes the wrong image right, which earns nothing
            attack("B", "bounded", [0, 0, 1, 1, 0, 1], [0.1] * 6, [NAN] * 6),
            attack("C", "minimal", [1, 0, 1, 0, 1, 0], [0.2, 0.4, 0.6, 0.8, 1.0, 0.0], [0.5, NAN, 0.7, NAN, NAN, 1.0]),
        ],
        findings=[Finding("n", "doubt", "1 %", "means", "try", "A")],
        curves=[Curve("A", "Linf", [0.0, 0.1], [5, 4], 6)],
        gallery=[Exhibit("A", 10, 0, 0, 1, 0.1, 0.2, pixels, 1 - pixels)],
        notes={"pass": "settings"},
        provenance={"command": "x", "seconds": 1.5},
    )


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        # R 4.3, prop.test(x, n, correct = FALSE)$conf.int
        (8, 10, 0.4901625, 0.9433178),
        (0, 10, 0.0, 0.2775328),
        (10, 10, 0.7224672, 1.0),
        (1, 2, 0.0945312, 0.9054688),
        # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_are_the_published_ones(count, total, low, high):
    assert wilson(count, total) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize(("count", "total"), [(3, 7), (90, 1000), (999, 1000)])
def test_wilson_bounds_are_where_the_score_test_just_rejects(count, total):
    z = 1.959963984540054
    for bound in wilson(count, total):
        assert abs(count / total - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / total), rel=1e-9)


def test_a_share_of_nothing_is_no_number_and_knows_nothing():
    assert math.isnan(Share(0, 0).value)
    assert Share(0, 0).interval == (0.0, 1.0)


def test_a_share_reads_as_percent_with_its_interval():
    assert str(Share(8, 10)) == "80.0 % [49.0, 94.3]"


def test_accuracies_count_images_that_are_right_without_and_under_the_attack(evaluation):
    assert evaluation.clean_accuracy() == Share(5, 6)
    assert evaluation.robust_accuracy("A") == Share(4, 6)
    assert evaluation.robust_accuracy("B") == Share(3, 6)
    assert evaluation.robust_accuracy("C") == Share(0, 6)


def test_success_is_counted_among_right_images(evaluation):
    assert evaluation.success_rate("A") == Share(1, 5)
    assert evaluation.success_rate("C") == Share(5, 5)


def test_the_worst_case_is_pointwise_over_attacks_with_a_bound(evaluation):
    assert evaluation.worst_case() == Share(2, 6)


def test_without_an_attack_with_a_bound_there_is_no_worst_case(evaluation):
    only_minimal = Evaluation.from_json({**evaluation.to_json(), "attacks": evaluation.to_json()["attacks"][2:]})
    assert only_minimal.worst_case() is None
    assert [row["attack"] for row in only_minimal.summary()] == ["clean", "C"]


def test_means_are_over_the_examples_produced_and_leave_out_what_was_not_measured(evaluation):
    assert evaluation.produced("C", "linf") == pytest.approx((0.6, math.sqrt(0.08)))
    assert evaluation.produced("C", "pass_score") == pytest.approx((0.6, 0.1))
    assert all(math.isnan(value) for value in evaluation.produced("A", "pass_score"))


def test_a_mean_over_no_example_is_no_number_and_no_warning(evaluation):
    failed = evaluation.attack("A")
    failed.columns["prediction"] = evaluation.label
    assert all(math.isnan(value) for value in evaluation.produced("A", "linf"))


def test_zero_gradients_are_counted_among_right_images(evaluation):
    assert evaluation.zero_gradient_share("A") == Share(1, 5)


def test_an_evaluation_survives_json(evaluation):
    written = json.dumps(evaluation.to_json(), allow_nan=False)
    back = Evaluation.from_json(json.loads(written))
    assert json.dumps(back.to_json()) == written
    assert back.summary()[0] == evaluation.summary()[0]
    np.testing.assert_array_equal(back.attack("C")["pass_score"], evaluation.attack("C")["pass_score"])
    np.testing.assert_allclose(back.gallery[0].original, evaluation.gallery[0].original, atol=2**-12)
    assert back.findings == evaluation.findings
    assert back.curves == evaluation.curves
    for name, dtype in COLUMNS.items():
        assert back.attack("A")[name].dtype == dtype


def test_an_evaluation_survives_its_file(evaluation, tmp_path):
    path = evaluation.save(tmp_path)
    assert path == tmp_path / "s_Linf-0.1_d_6_seed3.json"
    assert Evaluation.read(path).to_json() == evaluation.to_json()


def test_another_record_is_refused_as_an_evaluation(tmp_path):
    write_record(tmp_path / "s.json", {"model": "m"})
    with pytest.raises(FileError, match="no evaluation"):
        Evaluation.read(tmp_path / "s.json")


def test_csv_has_a_line_per_image_and_attack(evaluation, tmp_path):
    text = evaluation.to_csv(tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_text() == text
    lines = list(csv.DictReader(io.StringIO(text)))
    assert len(lines) == 18
    assert (
        lines[7] | {"attack": "B", "index": "11", "label": "1", "clean_prediction": "1", "prediction": "0"} == lines[7]
    )


def test_the_summary_shows_grey_levels_beside_pixels(evaluation):
    row = next(row for row in evaluation.summary() if row["attack"] == "C")
    assert row["linf_grey_levels"] == pytest.approx((153.0, 255 * math.sqrt(0.08)))


@pytest.fixture
def cascade():
    """The suite of three attacks where each meets only what stood: A turns 0, B turns 1 and 2, C nothing."""

    def rows(name, prediction, forwards):
        columns = {column: np.zeros(5, dtype) for column, dtype in COLUMNS.items()}
        columns["prediction"], columns["forwards"] = np.array(prediction), np.array(forwards)
        return AttackRows(name, f"{name}()", "bounded", "Linf:0.1", columns)

    return Evaluation(
        model="m",
        data="d",
        suite="s",
        threat="Linf:0.1",
        seed=0,
        classes=["zero", "one"],
        index=np.arange(5),
        label=np.zeros(5, int),
        prediction=np.array([0, 0, 0, 0, 1]),
        attacks=[
            rows("A", [1, 0, 0, 0, 1], [3, 7, 7, 7, 0]),
            rows("B", [NOT_TRIED, 1, 1, 0, 1], [0, 2, 5, 9, 0]),
            rows("C", [NOT_TRIED, NOT_TRIED, NOT_TRIED, 0, 1], [0, 0, 0, 4, 0]),
        ],
    )


def test_a_cascade_knows_who_decided_what_and_at_what_cost(cascade):
    assert cascade.decided() == ["A", "B", "B", "", ""]
    assert cascade.effort().tolist() == [3, 9, 12, math.inf, 0]
    assert [cascade.robust_accuracy(name).count for name in "ABC"] == [3, 1, 1], "cumulative"
    assert cascade.turned("B").tolist() == [False, True, True, False, False]
    worst = cascade.worst_case()
    assert worst is not None
    assert worst.count == 1


def test_robust_accuracy_after_fewer_steps_is_read_off_the_passes(cascade):
    # A found image 0 with its third forward pass: after two steps
    assert [share.count for share in cascade.over_steps("A", [0, 1, 2, 6])] == [4, 4, 3, 3]


def test_the_budgets_of_a_curve_are_runs_of_their_own_or_read_off_the_longest(cascade):
    long, other = cascade.attack("A"), cascade.attack("B")
    whole = replace(long, name="PGD-100")
    curve = replace(cascade, suite="pgd-curve", attacks=[whole]).over_budgets()
    assert list(curve) == [10, 20, 30, 50, 100]
    assert [share.count for share in curve.values()] == [3] * 5
    whole["forwards"][0] = 21  # image 0 fell after 20 steps
    short = replace(long, name="PGD-10", columns={**long.columns, "prediction": cascade.label})
    curve = replace(cascade, suite="pgd-curve-untargeted", attacks=[short, whole]).over_budgets()
    assert [share.count for share in curve.values()] == [4, 3, 3, 3, 3]
    assert curve[10].interval == cascade.clean_accuracy().interval
    # searched on another network, no image leaves early
    through = replace(whole, attack=f"Transfer({whole.attack}, model=Sequential)")
    assert list(replace(cascade, suite="pgd-curve", attacks=[short, through]).over_budgets()) == [10, 100]
    # B did not meet every right image; another suite's PGD-100 may have had other steps
    assert replace(cascade, suite="pgd-curve", attacks=[replace(other, name="PGD-100")]).over_budgets() == {}
    assert replace(cascade, attacks=[whole]).over_budgets() == {}


def test_distances_unite_the_minimal_attacks_of_a_norm(evaluation):
    minimal = replace(evaluation.attacks[2], norm="Linf")
    found = replace(evaluation, attacks=[*evaluation.attacks[:2], minimal]).distances("Linf")
    assert found.tolist() == [0.2, 0.4, 0.6, 0.8, 1.0, 0.0]
    assert np.isinf(evaluation.distances("L2")[:5]).all()
