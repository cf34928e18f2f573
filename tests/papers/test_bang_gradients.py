"""BANG's gradients at their smallest scale; and the claims on figures made up to refute them."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bessemer.errors import UsageError
from bessemer.papers.bang import gradients
from bessemer.records import COLUMNS, AttackRows, Evaluation, Share

MNIST = Path(os.environ.get("BESSEMER_DATA", "")) / "mnist"
needs_mnist = pytest.mark.skipif(
    "BESSEMER_DATA" not in os.environ or not MNIST.is_dir(),
    reason="MNIST is not there: set BESSEMER_DATA to its folder",
)
IMAGES = 200


@needs_mnist
def test_the_smoke_scale_runs_end_to_end_and_is_not_done_twice(tmp_path):
    result = gradients.run("smoke", tmp_path)
    written = json.loads(result.write(tmp_path).read_text())
    assert written["name"] == "bang-gradients"
    assert set(written["numbers"]) == {"R0", "B0", "B4"}
    assert written["numbers"]["B4"]["published"]["fgs_rate"] == 1.52
    ours = written["numbers"]["R0"]["ours"]
    assert ours["rays"]["images"] == 20
    # a network of 40 iterations hides nothing, so a float64 copy answers as the network itself does
    assert ours["rays"]["fgs_rate"] == ours["rays"]["fgs_rate_float64"]
    assert len(written["claims"]) == 13
    assert (tmp_path / "bang-gradients-smoke.png").read_bytes().startswith(b"\x89PNG")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "lenet-R0-40").rglob("*.safetensors")}
    made |= {path: path.stat().st_mtime_ns for path in tmp_path.rglob("records/*.json")}
    assert len(made) > 3
    assert gradients.run("smoke", tmp_path).numbers == result.numbers
    assert {path: path.stat().st_mtime_ns for path in made} == made


def evaluation(attacks, kind="minimal", wrong=0):
    """Made-up rows: name -> (share of images turned, their distance, share of images without a gradient)."""
    label = np.zeros(IMAGES, np.int64)

    def rows(name, turned, distance, blank):
        count = round(turned * IMAGES)
        columns = {column: np.zeros(IMAGES, dtype) for column, dtype in COLUMNS.items()}
        columns["prediction"][:count] = 1
        for norm in ("linf", "l2"):
            columns[norm][:count] = distance
        columns["zero_gradients"][IMAGES - round(blank * IMAGES) :] = 1
        norm = ("L2" if "L2" in name else "Linf") if kind == "minimal" else ""
        return AttackRows(name, name, kind, "" if kind == "minimal" else "Linf:0.1", columns, norm)

    prediction = label.copy()
    prediction[:wrong] = 1
    found = [rows(name, *facts) for name, facts in attacks.items()]
    return Evaluation("made up", "none", "made-up", "", 0, ["0", "1"], np.arange(IMAGES), label, prediction, found)


def network(
    fgs=1.0, blank=0.0, precise=1.0, margin=1.0, hot_cold=0.5, pgd=(0.3, 0.3), standing=0.5, at_large=0.0, far=0.1
):
    """What would be found about a network with these figures."""
    ball = {0.1: 1 - standing, 0.3: 1 - at_large}
    return gradients.Found(
        accuracy=Share(992, 1000),
        gaps=np.array([10.0]),
        rays=evaluation({"FGS": (fgs, 0.2, blank), "FGS, margin loss": (margin, 0.2, 0), "HC1": (1, hot_cold, 0)}),
        precise=evaluation({"FGS": (precise, 0.2, 0)}),
        pgd={
            eps: evaluation({"PGD-40": (pgd[0], 0.1, 0), "PGD-40, margin loss": (pgd[1], 0.1, 0)}, "bounded")
            for eps in ball
        },
        ensemble={eps: evaluation({"APGD-CE": (turned, 0.1, 0)}, "bounded") for eps, turned in ball.items()},
        minimal=evaluation({"DDN, L2": (1, far, 0), "FAB, Linf": (1, far, 0)}),
    )


# a world in which every claim holds: BANG hides its gradients, and is a little more robust as well
HIDDEN = {"blank": 0.95, "hot_cold": 0.8, "pgd": (0.1, 0.2), "standing": 0.7, "far": 0.15}


def held(regular, **bang):
    """The first words and the verdict of each claim, in order."""
    found = {
        "R0": network(**regular),
        "B0": network(**{**HIDDEN, "fgs": 0.05, **bang}),
        "B4": network(**{**HIDDEN, "fgs": 0.04, **bang}),
    }
    return [claim.holds for claim in gradients.claims(found)]


def test_every_claim_holds_where_it_should():
    assert held({}) == [True] * 13


@pytest.mark.parametrize(
    ("place", "regular", "bang"),
    [
        (1, {}, {"fgs": 0.2, "blank": 0.8}),
        (2, {"fgs": 0.01}, {}),
        (3, {}, {"hot_cold": 0.6}),
        (5, {}, {"precise": 0.9}),
        (6, {}, {"margin": 0.9}),
        (7, {}, {"precise": 0.8}),
        (8, {}, {"pgd": (0.2, 0.2)}),
        (8, {"pgd": (0.1, 0.2)}, {}),
        (9, {}, {"standing": 0.5}),
        (10, {}, {"at_large": 0.1}),
        (11, {}, {"far": 0.1}),
        (12, {}, {"far": 0.05}),
    ],
)
def test_each_claim_can_fail(place, regular, bang):
    assert held(regular, **bang)[place] is False


def test_accuracy_and_zero_gradients_in_float64_are_claims_too():
    good = network()
    blank = replace(good, precise=evaluation({"FGS": (0.9, 0.2, 0.1)}), accuracy=Share(95, 100))
    verdicts = [claim.holds for claim in gradients.claims({"R0": good, "B0": good, "B4": blank})]
    assert (verdicts[0], verdicts[4]) == (False, False)


def test_farther_is_asked_image_by_image():
    near, far = network(far=0.1), network(far=0.2)
    assert str(gradients._pairs(far, near, "L2")) == str(Share(IMAGES, IMAGES))
    assert gradients._pairs(near, near, "L2").total == 0
    some_wrong = replace(far, minimal=evaluation({"DDN, L2": (1, 0.2, 0)}, wrong=20))
    assert gradients._pairs(some_wrong, near, "L2").total == IMAGES - 20


def test_an_unknown_scale_is_refused(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'cpu'"):
        gradients.run("cpuu", tmp_path)
