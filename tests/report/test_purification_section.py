"""The section on purification: figures that are those of the record, a page that is whole, and the way back."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from chromium import PROGRAM, Chromium
from parsed_page import Page
from test_in_a_browser import CONTRAST

from bessemer.records.purification import NEURON_COLUMNS, PURIFICATIONS, Layer, Purification, chance
from bessemer.report import report


def layer(name, neurons, size, centre, independent=True, dead=()):
    random = np.random.default_rng(neurons)
    theta = np.clip(random.normal(centre, 0.05, neurons), 0, 1)
    columns = {column: random.uniform(0, 0.3, neurons) for column in NEURON_COLUMNS}
    columns |= {"clean_robust": theta, "removed": np.sqrt(1 - theta**2), "beta": random.uniform(0.5, 2, neurons)}
    if not independent:
        columns |= {column: np.full(neurons, math.nan) for column in ("independent", "nearest_independent")}
    ranks = [2**power for power in range(min(neurons, size).bit_length())]
    explained = np.linspace(0.3, 1, len(ranks)).tolist()
    by_chance = np.linspace(0.1, 1, len(ranks)).tolist()
    return Layer(name, [neurons, size], size, columns, list(dead), ranks, explained, explained, by_chance, 1.0)


@pytest.fixture(scope="module")
def record():
    layers = [layer("conv1", 20, 27, 0.9), layer("stages.0.fc", 40, 180, 0.6, dead=[3])]
    return Purification("clean", "<b>$robust$</b>", "the start", "other", "continued", layers, ["a remark"])


@pytest.fixture(scope="module")
def page(record, tmp_path_factory):
    return Page(report([record], tmp_path_factory.mktemp("page") / "report.html"))


def test_the_page_says_what_it_compares_and_how_much_was_kept(page, record):
    outweighs = record.outweighs()
    median = float(np.median(record.column("clean_robust")))
    assert page.texts("h1") == ["What training did to the neurons, from clean to <b>$robust$</b>"]
    assert f"In {100 * outweighs.value:.1f} % of 59 neurons more of the clean weight lies along" in page.text()
    assert f"Medians over all neurons: θ(w, w′) {median:.2f}, θ(w⁰, w)" in page.text()
    assert "A remark." in page.text()


def test_every_layer_has_its_row_and_its_histogram(page, record):
    rows = [row.replace("\N{ZERO WIDTH SPACE}", "") for row in page.texts("tr")]
    for one in record.layers:
        share = one.outweighs()
        values = one["clean_robust"][one.live]
        row = next(row for row in rows if row.startswith(f"{one.name} {len(one)} × {one.size}"))
        assert f"{np.median(values):.2f}" in row
        assert f"{share.count} of {share.total}" in row
        assert f"θ of clean and <b>$robust$</b>, {one.name}" in page.texts("title")
    assert [row.split()[0] for row in rows if "1 without direction" in row] == ["stages.0.fc"]


def test_random_directions_stand_beside_what_was_measured(page, record):
    for one in record.layers:
        row = f"random directions {chance(one.size, 0.1):.3f} {chance(one.size, 0.25):.3f}"
        assert any(text.startswith(row) for text in page.texts("tr"))


def test_bars_say_what_an_update_of_low_rank_explains(page):
    assert "An update of rank 1 in every layer explains 30.0 % of the change of the weights" in page.text()
    assert "Explained by rank, clean and <b>$robust$</b>" in page.texts("title")
    widths = [span["style"] for span in page.all("span") if span.get("style", "").startswith("left:0.00%;width:")]
    assert widths[:2] == ["left:0.00%;width:30.00%", "left:0.00%;width:82.50%"]


def test_an_unrelated_pair_is_marked(record, tmp_path):
    stranger = replace(record, relation="unrelated", remarks=["unrelated: the robust run did not start there"])
    page = Page(report([stranger], tmp_path / "r.html"))
    assert page.texts("p", **{"class": "warning"}) == ["Unrelated: the robust run did not start there."]


def test_weights_that_stayed_near_their_start_are_said_to_say_little(record, tmp_path):
    near = [replace(one, columns={**one.columns, "initial_clean": np.full(len(one), 0.9)}) for one in record.layers]
    assert "train longer" in Page(report([replace(record, layers=near)], tmp_path / "r.html")).text()
    assert "train longer" not in Page(report([record], tmp_path / "r.html")).text()


def test_what_was_not_measured_is_left_out(tmp_path):
    still = replace(layer("fc", 8, 30, 0.9, independent=False), change=0.0, explained=[math.nan] * 4)
    bare = Purification("a", "b", "", "", "unknown", [still])
    page = Page(report([bare], tmp_path / "r.html"))
    assert "θ(w, u)" not in " ".join(page.texts("th"))
    assert "not changed" in page.text()
    assert "nan" not in re.findall(r"\w+", page.text())


def test_memory_and_file_give_the_same_page(record, tmp_path):
    path = record.save(tmp_path / "kept")
    one, other = (report([what], tmp_path / f"{place}.html") for place, what in enumerate([record, path]))
    texts = [page.read_text(encoding="utf-8").partition("Make this page again")[0] for page in (one, other)]
    assert texts[0] == texts[1]
    assert f"bessemer report {path} --out report.html" in Page(other).text()
    assert 'bessemer.report([purification, …], "report.html")' in Page(one).text()


def test_a_run_brings_the_comparisons_in_its_folder(record, three_runs, tmp_path):
    three_runs[0].evaluations[0].save(tmp_path / "run" / "records")
    record.save(tmp_path / "run" / PURIFICATIONS)
    page = Page(report([tmp_path / "run"], tmp_path / "r.html"))
    assert page.texts("h1") == ["How run holds under attack"]
    assert "clean → <b>$robust$</b>" in page.texts("h3")
    record.save(tmp_path / "bare" / PURIFICATIONS)
    assert "clean → <b>$robust$</b>" in Page(report([tmp_path / "bare"], tmp_path / "r.html")).texts("h3")


def test_identifiers_are_unique_with_two_comparisons(record, tmp_path):
    page = Page(report([record, replace(record, robust="bang")], tmp_path / "r.html"))
    named = [element["id"] for element in page.elements if "id" in element]
    assert len(named) == len(set(named))
    assert all(element["href"][1:] in named for element in page.all("a") if element["href"].startswith("#"))


@pytest.mark.skipif(PROGRAM is None, reason="neither chromium nor google-chrome is on PATH")
def test_a_browser_finds_it_readable_and_no_wider_than_the_screen(record, three_runs, tmp_path):
    many = replace(record, layers=[*record.layers, layer("a" * 150, 30, 64, 0.7)])
    path = report([three_runs[0], many], tmp_path / "r.html")
    browser = Chromium(tmp_path / "profile")
    try:
        for width, scheme in ((360, "light"), (1200, "light"), (1200, "dark")):
            browser.open(path, width, 740, scheme, phone=width == 360)
            browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert browser.value("document.documentElement.scrollWidth") == width
            assert browser.value(CONTRAST) == []
        assert browser.complaints == []
    finally:
        browser.close()
