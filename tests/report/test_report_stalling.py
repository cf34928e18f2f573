"""The section on how training stalls: the figures of the metrics, and nothing where none are."""

import re
from dataclasses import replace

import numpy as np
import pytest
from chromium import PROGRAM, Chromium
from parsed_page import Page
from test_in_a_browser import CONTRAST

from bessemer.records import stalling as record
from bessemer.records.movement import named
from bessemer.report import report

TITLE = "How training stalls"
FEW, MANY = ["conv1", "ip1"], [f"stages.0.{number}.conv" for number in range(10)]


def lines(layers, balanced):
    """What a run notes at three moments: later layers stall a little more."""
    noted = []
    for iteration in (0, 500, 1000):
        done = iteration / 1000
        line = {"iteration": iteration, record.IMAGES: 500.0, record.ACCURACY: 0.1 + 0.8 * done}
        for share in record.QUANTILES:
            line[record.at_quantile(record.GAP, share)] = 100 * share * done
        for place, layer in enumerate(layers):
            line[named(record.CORRECT, layer)] = 0.1 + 0.01 * place * done
            line[named(record.EFFECTIVE, layer)] = 0.9 - 0.8 * done - 0.005 * place
            line[named(record.ZERO, layer)] = 0.25 * done
            for share in record.QUANTILES:
                line[named(record.at_quantile(record.NORM, share), layer)] = -10 * done * (1 - share) - place * done
            if balanced:
                line[named(record.CORRECT_BALANCED, layer)] = 0.1 + 0.5 * done + 0.01 * place
                line[named(record.EFFECTIVE_BALANCED, layer)] = 0.9 - 0.3 * done
        noted.append(line)
    return noted


def noting(run, layers, balanced=False, name="<i>$bang$</i>"):
    return replace(run, name=name, metrics=[*run.metrics, *lines(layers, balanced)])


@pytest.fixture(scope="module")
def page(three_runs, tmp_path_factory):
    regular, bang, deep = three_runs
    runs = [noting(regular, FEW, name="regular"), noting(bang, FEW, balanced=True), noting(deep, MANY, True, "deep")]
    return Page(report(runs, tmp_path_factory.mktemp("page") / "report.html"))


def test_the_section_says_what_stalling_is_and_who_said_so(page):
    assert TITLE in page.texts("h2")
    assert "(Rozsa, Günther and Boult, 2018, sections 1 and 3.1)" in page.text()
    assert "Measured on 500 training images, always the same, neither augmented nor attacked (also" in page.text()
    assert "Stalling" in page.texts("a", href="#stalling")


def test_each_run_has_four_plots(page):
    for name in ("regular", "<i>$bang$</i>", "deep"):
        assert [heading for heading in page.texts("h3") if heading.startswith(f"{name}: ")] == [
            f"{name}: what correctly classified samples contribute",
            f"{name}: how many samples count",
            f"{name}: how far gradients lie apart",
            f"{name}: the logit gap",
        ]


def test_before_and_after_stand_in_the_tables_and_the_descriptions(page):
    rows = page.texts("tr")
    assert "iteration classified correctly conv1 ip1" in rows
    for expected in (
        "0 10.0 % 10.0 % 10.0 %",  # regular
        "1,000 90.0 % 10.0 % 11.0 %",
        "0 10.0 % 10.0 % 10.0 % 11.0 % 10.0 %",  # after, and small before
        "1,000 90.0 % 60.0 % 10.0 % 61.0 % 11.0 %",
        "1,000 10.0 % 9.5 %",  # the effective share
        "1,000 60.0 % 10.0 % 60.0 % 9.5 %",
    ):
        assert expected in rows
    text = page.text()
    assert "At the end share of the gradient norms is between 10.0 % and 11.0 %." in text
    assert "At the end share of the gradient norms is between 60.0 % and 61.0 %, after balancing." in text
    assert "At the end effective share of the samples is 60.0 %, after balancing." in text


def test_before_balancing_is_spoken_of_only_where_something_is_balanced(three_runs, tmp_path):
    text = Page(report([noting(three_runs[0], FEW)], tmp_path / "r.html")).text()
    assert TITLE in text
    for word in ("BANG scales", "Thin, without marks", "after balancing", "balanced against"):
        assert word not in text


def test_norms_and_gaps_are_told_with_what_has_no_gradient(page):
    rows = page.texts("tr")
    # the median over the samples, and between 5 and 95 %
    assert "1,000 −5.0 −9.5 – −0.5; zero: 25.0 % −6.0 −10.5 – −1.5; zero: 25.0 %" in rows
    assert "1,000 5.0 25.0 50.0 75.0 95.0" in rows
    assert "At the end the median gap is 50.0." in page.text()
    assert "Dotted: 87, where float32 gradients of cross-entropy underflow" in page.text()


def test_many_layers_are_one_line_in_a_band_and_a_table_of_all(page):
    values = [0.6 + 0.01 * place for place in range(10)]
    low, middle, high = 100 * np.mean(values[:2]), 100 * np.median(values), 100 * np.mean(values[-2:])
    assert "median over the layers" in page.texts("ul", **{"class": "legend"})
    rows = " ".join(page.texts("tr"))
    assert f"1,000 90.0 % {middle:.1f} % {low:.1f} % – {high:.1f} % 60.0 % 10.0 % 61.0 % 11.0 %" in rows
    assert "In the middle of 10 layers" in page.text()


def test_a_page_of_runs_that_noted_nothing_is_as_it_was(three_runs, tmp_path):
    page = Page(report(three_runs, tmp_path / "r.html"))
    assert TITLE not in page.texts("h2")
    assert not page.all("a", href="#stalling")


def test_what_could_not_be_measured_is_a_dash_and_no_nan(three_runs, tmp_path):
    run = noting(three_runs[0], FEW, balanced=True)
    for line in run.metrics:
        if line["iteration"] == 1000:
            for key in [key for key in line if key.endswith("/ip1") or key.startswith(record.GAP)]:
                del line[key]
        if line["iteration"] == 500:
            for key in [key for key in line if "share/" in key or record.NORM in key]:
                del line[key]
    page = Page(report([run], tmp_path / "r.html"))
    assert "1,000 90.0 % 60.0 % 10.0 % –" in page.texts("tr")
    assert "nan" not in re.findall(r"\w+", page.text())


def test_a_run_that_ended_before_its_first_step_or_without_any_gradient_is_drawn(three_runs, tmp_path):
    run = noting(three_runs[0], FEW)
    page = Page(report([replace(run, metrics=lines(FEW, balanced=True)[:1])], tmp_path / "r.html"))
    assert len([heading for heading in page.texts("h3") if heading.startswith("<i>$bang$</i>: ")]) == 4
    bare = [{"iteration": 0, record.ACCURACY: 0.0, named(record.ZERO, "ip1"): 1.0}]
    page = Page(report([replace(run, metrics=bare)], tmp_path / "r.html"))
    assert TITLE in page.texts("h2")
    assert not [heading for heading in page.texts("h3") if heading.startswith("<i>$bang$</i>: ")]


def drawn(page, colour, width):
    """The lines of one width in the drawings, as heights in the drawing's units, which count downwards."""
    return [
        [-float(height) for height in re.findall(r"[ML] [\d.-]+ ([\d.-]+)", element["d"])]
        for element in page.all("path")
        if f"stroke: {colour}" in element.get("style", "") and f"stroke-width: {width}" in element["style"]
    ]


def test_lines_are_where_the_record_says(three_runs, tmp_path):
    run = replace(three_runs[0], metrics=lines(["ip1"], balanced=True), evaluations=[])
    page = Page(report([run], tmp_path / "r.html"))
    before = drawn(page, "var(--run-1)", "0.8")[0]
    after = next(line for line in drawn(page, "var(--run-1)", "1.3") if line[0] == before[0])
    accuracy = drawn(page, "currentColor", "1.2")[0]
    assert before[0] == before[1] == before[2]
    # from 0.1 to 0.6 the one, to 0.9 the other, on one axis
    assert accuracy[0] == before[0]
    assert (after[2] - after[0]) / (accuracy[2] - accuracy[0]) == pytest.approx(0.5 / 0.8, rel=1e-3)


def test_identifiers_are_unique_and_drawings_take_the_colours_of_the_page(page):
    named_ = [element["id"] for element in page.elements if "id" in element]
    assert len(named_) == len(set(named_))
    for element in page.elements:
        assert set(element.get("aria-labelledby", "").split()) <= set(named_)
    drawings = [each for each in re.findall(r'<svg[^>]*role="img".*?</svg>', page.html, re.S) if "stalling-" in each]
    assert len(drawings) == 12
    for drawing in drawings:
        assert not re.findall(r"#[0-9a-f]{6}", drawing)
        assert "font-family" not in drawing


@pytest.mark.skipif(PROGRAM is None, reason="neither chromium nor google-chrome is on PATH")
def test_a_browser_finds_it_readable_and_no_wider_than_the_screen(three_runs, tmp_path):
    runs = [noting(three_runs[0], ["a" * 150, *FEW], balanced=True), noting(three_runs[1], MANY, name="b" * 150)]
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
