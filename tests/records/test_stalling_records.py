"""What a run's metrics say of how far training has stalled: written under these names, and read back."""

import json

from bessemer.records import read_metrics
from bessemer.records import stalling as record
from bessemer.records.movement import moments, named


def test_what_is_written_is_read_back_by_iteration_and_layer(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {
            "iteration": 0,
            record.ACCURACY: 0.1,
            named(record.CORRECT, "a"): 0.2,
            named(record.CORRECT_BALANCED, "a"): 0.3,
        },
        {"iteration": 10, "loss": 1.0},
        {"iteration": 10, record.ACCURACY: 0.5, named(record.CORRECT, "a"): 0.4, named(record.CORRECT, "b/c"): 0.5},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_metrics(path)
    assert record.course(found, record.ACCURACY) == {0: 0.1, 10: 0.5}
    assert moments(found, record.CORRECT) == {0: {"a": 0.2}, 10: {"a": 0.4, "b/c": 0.5}}
    assert moments(found, record.CORRECT_BALANCED) == {0: {"a": 0.3}}
    assert record.course(found, record.at_quantile(record.GAP, 0.5)) == {}


def test_every_measure_has_a_name_of_its_own():
    whole = [record.IMAGES, record.ACCURACY, *(record.at_quantile(record.GAP, each) for each in record.QUANTILES)]
    layers = [
        record.CORRECT,
        record.CORRECT_BALANCED,
        record.EFFECTIVE,
        record.EFFECTIVE_BALANCED,
        record.ZERO,
        *(record.at_quantile(record.NORM, each) for each in record.QUANTILES),
    ]
    assert len({*whole, *layers}) == len(whole) + len(layers) == 17
    assert record.at_quantile(record.GAP, 0.05) == "probe_gap_05"
