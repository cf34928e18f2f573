"""Table 1 of BANG at its smallest scale; and its claims on rows made up to refute them."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from bessemer.errors import UsageError
from bessemer.papers.bang import table1
from bessemer.records import Evaluation

MNIST = Path(os.environ.get("BESSEMER_DATA", "")) / "mnist"
needs_mnist = pytest.mark.skipif(
    "BESSEMER_DATA" not in os.environ or not MNIST.is_dir(),
    reason="MNIST is not there: set BESSEMER_DATA to its folder",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("table1")


@needs_mnist
def test_the_smoke_scale_runs_end_to_end_and_is_not_done_twice(runs):
    result = table1.run("smoke", runs)
    written = json.loads(result.write(runs).read_text())
    assert written["name"] == "bang-table1"
    assert set(written["numbers"]) == {"R0", "B0"}
    assert written["numbers"]["B0"]["published"]["fgs_rate"] == 3.51
    assert written["numbers"]["R0"]["ours"]["images"] == 50
    assert len(written["claims"]) == 6
    began = {path: path.stat().st_mtime_ns for path in runs.rglob("*.safetensors")}
    again = table1.run("smoke", runs)
    assert again.numbers == result.numbers
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*.safetensors")} == began


@needs_mnist
def test_the_claims_can_fail(runs):
    regular, bang = (Evaluation.read(runs / name / "records" / "bang_mnist_50.json") for name in ("R0", "B0"))
    held = {claim.text: claim.holds for claim in table1.claims(regular, bang)}
    swapped = {claim.text: claim.holds for claim in table1.claims(bang, regular)}
    assert next(iter(held.values())) is False  # 150 iterations do not make 99 %
    assert held != swapped
    immune = replace(
        bang, attacks=[replace(rows, columns={**rows.columns, "prediction": bang.label}) for rows in bang.attacks]
    )
    texts = [claim.text for claim in table1.claims(regular, immune) if claim.holds]
    assert any("FGS nearly always fails" in text for text in texts)
    assert not any("cannot underflow" in text for text in texts)


def test_an_unknown_scale_is_refused(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'full'"):
        table1.run("ful", tmp_path)
