"""`bessemer list models`: what the networks cost."""

import contextlib
import re
import sys

from bessemer.arithmetic import flushed
from bessemer.cli import main
from bessemer.models import MODELS, PUBLISHED


def test_list_models_counts_each_model_and_the_published_networks_of_its_family(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bessemer", "list", "models"])
    monkeypatch.setenv("COLUMNS", "80")
    with flushed(), contextlib.suppress(SystemExit):
        main()
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, out.splitlines())) <= 80
    head, _, table = out.partition("multiply-adds\n")
    assert head.split()[-1] == "parameters"
    rows = [re.fullmatch(r"(.+?) +([\d,]+) +([\d.]+ [MG])", line).groups() for line in table.splitlines()]
    assert len(rows) == len(MODELS) + sum(map(len, PUBLISHED.values()))
    assert ("lenet", "431,080", "2.29 M") in rows
    place = rows.index(("bottleneck-resnet", "25,557,032", "4.09 G"))
    assert rows[place + 2] == ("  depth=152", "60,192,808", "11.51 G")
    assert rows[-1] == ("  depth=101, groups=32, width_per_group=8", "88,791,336", "16.41 G")
