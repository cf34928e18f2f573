"""The panel on how neurons move while a network trains: the figures of the metrics, and nothing where none are."""

import re
from dataclasses import replace

import numpy as np
import pytest
from chromium import PROGRAM, Chromium
from parsed_page import Page
from test_in_a_browser import CONTRAST

from bessemer.records.movement import INITIAL, OUTWEIGHS, START, named
from bessemer.report import report

TITLE = "How the neurons move away from the clean network"
FROM_START = "How the neurons move away from their random start"
FEW, MANY = ["conv1", "conv2", "ip1"], [f"stages.0.{number}.conv" for number in range(10)]


def lines(layers, chained=True):
    """What a run notes at three moments: layers that move the faster, the later they come."""
    noted = []
    for iteration in (0, 500, 1000):
        line = {"iteration": iteration}
        for place, layer in enumerate(layers):
            away = iteration / 1000 * (place + 1) / len(layers)
            line[named(INITIAL, layer)] = 0.7 - 0.6 * away
            if chained:
                line |= {named(START, layer): 1 - 0.2 * away, named(OUTWEIGHS, layer): 1 - 0.5 * away}
        noted.append(line)
    return noted


def noting(run, layers, chained=True, name="<i>$robust$</i>"):
    recipe = {**run.recipe, "init": "runs/<b>clean</b>"} if chained else run.recipe
    return replace(run, name=name, recipe=recipe, metrics=[*run.metrics, *lines(layers, chained)])


@pytest.fixture(scope="module")
def page(three_runs, tmp_path_factory):
    clean, robust, other = three_runs
    runs = [noting(clean, FEW, chained=False, name="clean"), noting(robust, FEW), noting(other, MANY, name="deep")]
    return Page(report(runs, tmp_path_factory.mktemp("page") / "report.html"))


def test_a_chained_run_has_a_line_a_layer_and_says_what_it_started_from(page):
    assert TITLE in page.texts("h3")
    assert "<i>$robust$</i>: θ(w, w′)" in page.texts("h3")
    assert "w: the weights that training began with, of runs/<b>clean</b>" in page.text()
    assert "Where adversarial training purifies" in page.text()
    assert "3 lines, iterations 0 to 1,000, at whose end θ(w, w′) is between 0.800 and 0.933." in page.text()
    legends = page.texts("ul", **{"class": "legend"})
    assert "conv1 conv2 ip1" in legends


def test_the_table_tells_every_layer_at_every_moment(page):
    found = page.texts("tr")
    assert "iteration conv1 conv2 ip1" in found
    for expected in (
        "0 1.000 100.0 % 1.000 100.0 % 1.000 100.0 %",
        "500 0.967 91.7 % 0.933 83.3 % 0.900 75.0 %",
        "1,000 0.933 83.3 % 0.867 66.7 % 0.800 50.0 %",
    ):
        assert expected in found


def test_many_layers_are_one_line_in_a_band_and_a_table_of_all(page):
    values = sorted(1 - 0.2 * (place + 1) / 10 for place in range(10))
    # a value that a tenth of them do not exceed lies halfway between the first and the second
    low, middle, high = np.mean(values[:2]), np.median(values), np.mean(values[-2:])
    assert "median over the layers" in page.texts("ul", **{"class": "legend"})
    assert f"1,000 {middle:.3f} {low:.3f} – {high:.3f} 0.980 95.0 % 0.960 90.0 %" in " ".join(page.texts("tr"))
    assert f"One line, iterations 0 to 1,000, at whose end θ(w, w′) is {middle:.3f}." in page.text()
    assert "iteration all layers the median; 10 to 90 % stages.0.0.conv stages.0.1.conv" in " ".join(page.texts("tr"))


def test_all_runs_stand_beside_one_another_over_the_way_from_the_random_start(page):
    assert page.texts("h3").count("All layers: θ(w⁰, w′)") == 1
    assert "clean <i>$robust$</i> deep" in page.texts("ul", **{"class": "legend"})
    few, many = (np.median([0.7 - 0.6 * (place + 1) / n for place in range(n)]) for n in (3, 10))
    low, high = 0.7 - 0.6, 0.7 - 0.2
    assert f"1,000 {few:.3f} {low:.3f} – {high:.3f} {few:.3f} {low:.3f} – {high:.3f} {many:.3f}" in " ".join(
        page.texts("tr")
    )


def test_runs_that_started_from_no_other_are_shown_with_their_random_start_alone(three_runs, tmp_path):
    page = Page(report([noting(three_runs[0], FEW, chained=False)], tmp_path / "r.html"))
    assert FROM_START in page.texts("h3")
    assert TITLE not in page.texts("h3")
    assert "Where adversarial training purifies" not in page.text()
    assert "θ(w, w′)" not in page.text()


def test_a_page_of_runs_that_noted_nothing_is_as_it_was(three_runs, tmp_path):
    text = Page(report(three_runs, tmp_path / "r.html")).text()
    assert "neurons" not in text
    assert "θ" not in text


def test_moments_that_one_run_alone_has_are_dashes_for_the_other(three_runs, tmp_path):
    one, other = noting(three_runs[0], FEW, chained=False), noting(three_runs[1], FEW, chained=False, name="short")
    short = replace(other, metrics=[line for line in other.metrics if line["iteration"] <= 500])
    page = Page(report([one, short], tmp_path / "r.html"))
    assert any(re.fullmatch(r"1,000 0\.300 0\.100 – 0\.500 –", row) for row in page.texts("tr"))


def test_a_layer_that_went_without_direction_leaves_a_gap_and_no_nan(three_runs, tmp_path):
    run = noting(three_runs[0], FEW)
    for line in run.metrics:
        if line["iteration"] == 1000:
            for measure in (START, OUTWEIGHS, INITIAL):
                line.pop(named(measure, "conv2"), None)
    page = Page(report([run], tmp_path / "r.html"))
    assert "1,000 0.933 83.3 % – 0.800 50.0 %" in page.texts("tr")
    assert "nan" not in re.findall(r"\w+", page.text())


def test_a_run_that_ended_before_its_first_step_is_drawn(three_runs, tmp_path):
    run = noting(three_runs[0], FEW)
    page = Page(report([replace(run, metrics=lines(FEW)[:1])], tmp_path / "r.html"))
    assert TITLE in page.texts("h3")


def test_identifiers_are_unique_and_drawings_take_the_colours_of_the_page(page):
    named_ = [element["id"] for element in page.elements if "id" in element]
    assert len(named_) == len(set(named_))
    for element in page.elements:
        assert set(element.get("aria-labelledby", "").split()) <= set(named_)
    drawings = re.findall(r'<svg[^>]*role="img".*?</svg>', page.html, re.S)
    moving = [drawing for drawing in drawings if "iterations 0 to 1,000" in drawing]
    assert len(moving) == 3
    for drawing in moving:
        assert not re.findall(r"#[0-9a-f]{6}", drawing)
        assert "currentColor" in drawing
        assert "font-family" not in drawing


@pytest.mark.skipif(PROGRAM is None, reason="neither chromium nor google-chrome is on PATH")
def test_a_browser_finds_it_readable_and_no_wider_than_the_screen(three_runs, tmp_path):
    runs = [noting(three_runs[0], ["a" * 150, *FEW]), noting(three_runs[1], MANY, name="b" * 150)]
    path = report(runs, tmp_path / "r.html")
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
