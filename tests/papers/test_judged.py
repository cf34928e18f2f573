"""What was found once is read; bfloat16 gives way to float32 where the two say too different things."""

from dataclasses import replace

import torch
from torch import nn

from bessemer.attacks import PGD
from bessemer.errors import ModelError
from bessemer.evaluation import evaluate
from bessemer.evaluation.suites import pgd_curve
from bessemer.papers import judged
from bessemer.threat import Linf


def test_a_network_that_bfloat16_changes_is_asked_in_float32_and_once(tmp_path, monkeypatch):
    modes = []

    def asked(model, dataset, suite, *, fast, samples, name, resume, watch):
        modes.append(fast)
        if fast:
            raise ModelError("in bfloat16 the model gives only 50 % of images the same class; use the exact mode")
        return evaluate(model, (images, labels), suite, name=name, resume=resume)

    images, labels = torch.rand(4, 3, 4, 4), torch.zeros(4, dtype=torch.int64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    dataset = type("Data", (), {"test": range(4), "name": ""})()
    suite = pgd_curve(Linf(8 / 255))
    monkeypatch.setattr(judged, "evaluate", asked)
    settings = {"samples": 4, "watch": lambda stage: None}
    for _ in range(2):  # the second time it is read
        found = judged.judged(model, dataset, suite, tmp_path, fast=True, **settings)
    assert modes == [True, False]
    assert len(found) == 4
    # what was once asked under the same name does not answer another question
    other = replace(suite, attacks={"PGD": PGD(Linf(8 / 255), steps=2)})
    found = judged.judged(model, dataset, other, tmp_path, fast=True, **settings)
    assert [rows.name for rows in found.attacks] == ["PGD"]
    assert modes == [True, False, True, False]
    assert not list(tmp_path.glob("records/*.partial"))
