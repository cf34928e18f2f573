"""The page of a sweep: its figures, its plots, and the surface that they draw."""

from dataclasses import replace

import numpy as np
import pytest
from chromium import PROGRAM, Chromium
from parsed_page import Page

from bessemer.errors import UsageError
from bessemer.records import Sweep
from bessemer.records.sweep import DONE, FAILED, WAITING, Objective, SweepTrial, Varied
from bessemer.report.sweep import _interpolated, sweep_page, write_sweep

ACCURACY = Objective("accuracy", True, "images classified correctly", "share")
SUCCESS = Objective("success:FGS, <i>$x$</i>", False, "right answers that FGS turns", "share", attacked=True)
SECONDS = Objective("seconds", False, "what training took", "seconds")


def made(betas=(1.0, 1.25, 1.5), epsilons=(0.78, 0.81, 0.84), search=False, objectives=(ACCURACY, SUCCESS)):
    """Accuracy rises with beta, success falls with it: every trial at the best epsilon is on the front."""
    points = [(beta, epsilon) for beta in betas for epsilon in epsilons]
    trials = []
    for run, (beta, epsilon) in enumerate(points):
        far = abs(epsilon - 0.81)
        measured = {ACCURACY.name: 0.9 + 0.05 * beta - far, SUCCESS.name: 0.2 + 0.1 * beta + far, "seconds": 60.0 + run}
        values = {"method.beta": beta, "method.epsilon": epsilon}
        trials.append(SweepTrial(run, DONE, values, measured, seconds=60.0 + run, command=f"bessemer train x{run}"))
    return Sweep(
        "folder",
        "bang-digits",
        search,
        [Varied("method.beta", "1.0, 1.25, 1.5"), Varied("method.epsilon", "0.78, 0.81, 0.84")],
        list(objectives),
        {"suite": "bang", "threat": "Linf:0.1", "samples": 500, "images": "validation"},
        trials,
        "folder",
        "sqlite:////tmp/study.db",
        "runs/folder",
        {"commit": "abc"},
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return Page(write_sweep(made(), tmp_path_factory.mktemp("page") / "report.html"))


def test_the_best_of_each_objective_stands_first_with_its_command(page):
    assert page.texts("p", **{"class": "number"}) == ["97.5 %", "30.0 %"]
    assert page.texts("p", **{"class": "sentence"}) == [
        "trial-0007: method.beta 1.5, method.epsilon 0.81",
        "trial-0001: method.beta 1, method.epsilon 0.81",
    ]
    assert "bessemer train x7" in page.texts("code")
    assert "bessemer train x1" in page.texts("code")


def test_there_is_a_contour_plot_an_objective_and_a_front(page):
    titles = page.texts("h3")
    for expected in (
        "Accuracy over method.beta and method.epsilon",
        "Success:FGS, <i>$x$</i> over method.beta and method.epsilon",
        "Accuracy against success:FGS, <i>$x$</i>",
    ):
        assert expected in titles
    assert len(page.all("svg")) == 3
    text = page.text()
    assert "accuracy over method.beta and method.epsilon: from 92.0 % to 97.5 %, highest at method.beta 1.5" in text
    assert "On it: trial 1, 4, 7." in text


def test_every_trial_is_in_the_table_best_first(page):
    rows = [row for row in page.texts("tr") if row.startswith("trial-")]
    assert len(rows) == 9
    assert rows[0] == "trial-0007 1.5 0.81 97.5 % best 35.0 % 1 min 7 s done on the front"
    assert rows[-1].startswith(("trial-0000", "trial-0002"))


def test_the_page_is_self_contained_and_says_the_same_each_time(page, tmp_path):
    assert "<script" not in page.html
    assert "http://" not in page.html.replace("http://www.w3.org", "")
    assert "$x$" in page.html
    assert "<i>$x$" not in page.html
    assert write_sweep(made(), tmp_path / "again.html").read_text() == page.html
    identifiers = [element["id"] for element in page.elements if element.get("id")]
    assert len(set(identifiers)) == len(identifiers)


def test_the_surface_goes_through_the_trials_and_never_beyond_them():
    """Against a plane, which every sound interpolation has to return."""
    at = np.array([(x, y) for x in (1.0, 1.3, 1.6) for y in (0.001, 0.01, 0.1)])
    plane = 2 * at[:, 0] + np.log10(at[:, 1])
    across, up = np.linspace(1, 1.6, 13), np.geomspace(0.001, 0.1, 13)
    surface = _interpolated(at, plane, across, up, (False, True))
    expected = 2 * across[None, :] + np.log10(up)[:, None]
    np.testing.assert_allclose(surface, expected, atol=1e-6)
    peak = np.zeros(9)
    peak[4] = 1
    surface = _interpolated(at, peak, across, up, (False, True))
    assert np.nanmin(surface) == 0
    assert np.nanmax(surface) == 1
    assert surface[6, 6] == pytest.approx(1)


def test_there_is_no_surface_on_a_line_and_the_trials_are_drawn_all_the_same():
    diagonal = replace(made(), trials=[trial for trial in made().trials if trial.run in (0, 4, 8)])
    assert "Accuracy over method.beta and method.epsilon" in sweep_page(diagonal)


@pytest.mark.parametrize(
    ("sweep", "plots"),
    [
        (made(epsilons=(0.81,)), 3),  # one setting: a curve for each objective, and the front
        (made(betas=(1.0,), epsilons=(0.81,)), 1),
        (made(objectives=[ACCURACY]), 1),
        (made(objectives=[ACCURACY, SUCCESS, SECONDS]), 6),
        (made(search=True), 5),  # with the course of each objective
        (replace(made(), trials=[]), 0),
    ],
)
def test_it_draws_what_there_is(sweep, plots):
    assert sweep_page(sweep).count("<svg") == plots


def test_what_is_not_done_is_told_and_not_drawn():
    sweep = made()
    trials = [
        *sweep.trials[:4],
        SweepTrial(4, FAILED, {"method.beta": 9.0, "method.epsilon": 0.8}, {}, "the loss is nan at iteration 5"),
        SweepTrial(5, WAITING),
    ]
    html = sweep_page(replace(sweep, trials=trials))
    assert "4 done, 1 failed, 1 waiting" in html
    assert "the loss is nan at iteration 5" in html
    assert "<svg" in html


def test_texts_are_no_axis_and_equal_points_are_averaged():
    sweep = made(epsilons=(0.81,))
    named = [replace(trial, values={**trial.values, "schedule.name": "inv"}) for trial in sweep.trials]
    named += [
        replace(trial, run=trial.run + 3, values={**trial.values, "schedule.name": "fixed"}) for trial in sweep.trials
    ]
    both = replace(sweep, varied=[*sweep.varied, Varied("schedule.name", "inv, fixed")], trials=named)
    assert "Accuracy over method.beta<" in sweep_page(both)


def test_the_settings_of_the_contour_plots_can_be_chosen():
    html = sweep_page(made(), ("method.epsilon", "method.beta"))
    assert "Accuracy over method.epsilon and method.beta" in html
    with pytest.raises(UsageError, match="did you mean 'method.beta'"):
        sweep_page(made(), ("method.bta", "method.epsilon"))
    with pytest.raises(UsageError, match="named twice"):
        sweep_page(made(), ("method.beta", "method.beta"))


@pytest.mark.skipif(PROGRAM is None, reason="no browser: install chromium to look at the page in it")
def test_a_browser_has_nothing_to_complain_about(page, tmp_path):
    path = write_sweep(made(), tmp_path / "report.html")
    browser = Chromium(tmp_path / "profile")
    try:
        for width in (1200, 380):
            browser.open(path, width=width)
            assert browser.value("document.documentElement.scrollWidth") <= width
        assert not browser.complaints
        assert all(request.startswith(("file:", "data:")) for request in browser.requests)
    finally:
        browser.close()
