import base64
import io
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from made_up import exhibit, judged
from parsed_page import Page
from PIL import Image

from bessemer.records import WORST, Curve, Finding
from bessemer.report import report
from bessemer.report.gallery import shrunk
from bessemer.report.lights import lights
from bessemer.report.specimens import SIDE, seeks_nearest
from bessemer.report.tables import quantile


def rows(page, table):
    """The rows of the table with this caption, each as a list of the texts of its cells."""
    html = next(part for part in page.html.split("<table>") if table in part.split("</caption>")[0])
    found = []
    for row in re.findall(r"<tr.*?</tr>", html.split("</table>")[0], re.S):
        cells = re.findall(r"<t[hd].*?</t[hd]>", row, re.S)
        found.append([" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in cells])
    return found


def drawings(page):
    """The figures of a page by their titles."""
    found = re.findall(r'<svg[^>]*role="img".*?</svg>', page.html, re.S)
    return {re.search(r"<title[^>]*>(.*?)</title>", drawing)[1]: drawing for drawing in found}


def strokes(drawing, colour="--run-1"):
    """The lines of a run in the order in which they were drawn: width, dashes, corners."""
    found = []
    for path, style in re.findall(r'<path d="([^"]*)"[^>]*style="(fill: none;[^"]*)"', drawing):
        if f"var({colour})" in style:
            width = re.search(r"stroke-width: ([\d.]+)", style)
            dashes = re.search(r"stroke-dasharray: ([\d., ]+)", style)
            corners = [(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)]
            found.append((float(width[1]) if width else 1.0, dashes[1] if dashes else "", corners))
    return found


# over the radius

CURVES = [
    Curve("FGSM", "Linf", [0.0, 0.05, 0.1, 0.2], [6, 5, 4, 3], 8),
    Curve("PGD-20", "Linf", [0.0, 0.05, 0.1, 0.2], [6, 5, 3, 1], 8),
    Curve(WORST, "Linf", [0.0, 0.05, 0.1, 0.2], [6, 4, 3, 1], 8),
]


def test_one_run_has_a_line_per_attack_and_the_worst_case_is_bold(cascade, tmp_path):
    page = Page(report([replace(cascade, curves=CURVES)], tmp_path / "r.html"))
    (drawing,) = drawings(page).values()
    (bold, first, second) = strokes(drawing)
    assert bold[0] > 2 * first[0] == 2 * second[0]
    assert first[1] != second[1]  # one colour: the style tells the attacks apart
    assert page.texts("ul", **{"class": "legend"}) == ["worst case FGSM PGD-20"]
    assert rows(page, "Robust accuracy over the Linf radius")[2] == [
        "0.05 (12.75/255)",
        "50.0 % [21.5, 78.5]",
        "62.5 % [30.6, 86.3]",
        "62.5 % [30.6, 86.3]",
    ]


def test_several_runs_have_the_worst_case_together_and_the_attacks_apart(cascade, tmp_path):
    other = replace(cascade, model="other", curves=CURVES)
    page = Page(report([replace(cascade, curves=CURVES), other], tmp_path / "r.html"))
    assert list(drawings(page)) == [
        "Robust accuracy over the Linf radius under worst case",
        "Robust accuracy over the Linf radius, cascaded",
        "Robust accuracy over the Linf radius, other",
    ]
    assert page.texts("ul", **{"class": "legend"}) == ["cascaded other", *["worst case FGSM PGD-20"] * 2]
    together, first, second = drawings(page).values()
    assert ("--run-1" in together, "--run-2" in together) == (True, True)
    assert ("--run-1" in first, "--run-2" in first) == (True, False)
    assert ("--run-1" in second, "--run-2" in second) == (False, True)


def test_without_a_united_curve_every_attack_has_a_plot_with_all_runs(cascade, tmp_path):
    one = replace(cascade, curves=CURVES[:2])
    page = Page(report([one, replace(one, model="other")], tmp_path / "r.html"))
    assert list(drawings(page)) == [
        "Robust accuracy over the Linf radius under FGSM",
        "Robust accuracy over the Linf radius under PGD-20",
    ]


# distances


def test_distances_are_a_staircase_per_attack_and_of_the_nearest(minimal, tmp_path):
    page = Page(report([minimal], tmp_path / "r.html"))
    (title, drawing), *others = drawings(page).items()
    assert not others
    assert title == "Share of images without a wrong answer within a L2 distance, small"
    assert page.texts("ul", **{"class": "legend"}) == ["nearest of all near far"]
    assert rows(page, "Within which L2 distance")[1:] == [
        ["nearest of all", "0", "0.1", "0.2", "0.4", "beyond", "20.0 % [3.6, 62.4]"],
        ["near", "0", "0.1", "0.3", "beyond", "beyond", "40.0 % [11.8, 76.9]"],
        ["far", "0", "0.2", "0.4", "0.5", "beyond", "20.0 % [3.6, 62.4]"],
    ]
    bold = max(strokes(drawing))[2]
    # one height for each share of the five images: 4, 3, 2 and 1 have no wrong answer yet
    assert len({round(y, 3) for _, y in bold}) == 4


def test_the_median_is_marked_where_the_staircase_crosses_one_half(tmp_path):
    distances = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    attack = {"only": ("minimal", "L2", {"prediction": np.ones(6), "l2": distances})}
    (drawing,) = drawings(Page(report([judged("m", np.zeros(6), np.zeros(6), attack)], tmp_path / "r.html"))).values()
    (_, _, stairs), (_, _, median) = strokes(drawing)
    (x, bottom), (again, top) = median
    assert x == again
    assert bottom > top
    level = [a for a, b in stairs if b == pytest.approx(top, abs=0.01)]  # the step at 50 %
    assert min(level) < x < max(level)
    assert x == pytest.approx((min(level) + max(level)) / 2, abs=0.01)


def test_a_curve_made_of_distances_is_not_drawn_twice(minimal, tmp_path):
    curves = [Curve(name, "L2", [0.0, 0.2, 0.4], [4, 3, 2], 5) for name in ("near", "far", WORST)]
    page = Page(report([replace(minimal, curves=curves)], tmp_path / "r.html"))
    assert not page.all("h2", id="radius")
    assert len(drawings(page)) == 1


@pytest.mark.parametrize("count", [1, 2, 5, 10, 37])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.75, 0.9])
def test_quantiles_are_numpys_and_the_median_is_the_median(count, share):
    values = np.random.default_rng(count).random(count)
    assert quantile(values.tolist(), share) == pytest.approx(
        np.quantile(values, share, method="averaged_inverted_cdf"), abs=1e-12
    )
    assert quantile(values.tolist(), 0.5) == pytest.approx(np.median(values))


def test_a_quantile_beyond_everything_found_is_infinite_and_no_nan():
    assert quantile([0.1, math.inf, math.inf], 0.5) == math.inf
    assert quantile([0.1, 0.2, math.inf, math.inf], 0.5) == math.inf
    assert math.isnan(quantile([], 0.5))


# steps


def test_robust_accuracy_is_told_over_the_steps_of_pgd_on_a_logarithmic_axis(tmp_path):
    # of ten right images three fall, with the forward passes after 15, 15 and 400 steps
    forwards = [16, 16, 401] + [2000] * 7
    attacks = {
        "PGD-10": ("bounded", "", {"prediction": [1] + [0] * 9, "forwards": np.full(10, 11)}),
        "PGD-2000": ("bounded", "", {"prediction": [1] * 3 + [0] * 7, "forwards": forwards}),
    }
    evaluation = judged("m", np.zeros(10), np.zeros(10), attacks, suite="pgd-curve")
    page = Page(report([evaluation], tmp_path / "r.html"))
    told = {row[0]: row[1].split(" [")[0] for row in rows(page, "Robust accuracy after so many steps")[1:]}
    assert told == {
        "10": "90.0 %",  # of a run of its own
        **dict.fromkeys(["20", "30", "50", "100", "200"], "80.0 %"),
        **dict.fromkeys(["500", "1,000", "2,000"], "70.0 %"),
    }
    (drawing,) = drawings(page).values()
    # marks for 10, 100 and 1,000 are equally far apart
    x = [float(mark) for mark in re.findall(r'<use x="([\d.]+)"[^>]*style="fill: var\(--run-1\)"', drawing)]
    assert x[4] - x[0] == pytest.approx(x[7] - x[4], abs=0.01)
    assert not Page(report([replace(evaluation, suite="own")], tmp_path / "r.html")).all("h2", id="steps")


# which attack broke what


def test_a_cascade_says_who_met_and_who_turned_what(cascade, tmp_path):
    page = Page(report([cascade], tmp_path / "r.html"))
    assert rows(page, "What each attack did")[1:] == [
        ["wrong before", "12.5 % 1 image", "", "", ""],
        ["first", "37.5 % 3 images", "7", "8", "7"],
        ["second", "12.5 % 1 image", "4", "82.5", "0"],
        ["stands", "37.5 % 3 images", "", "", ""],
    ]
    assert "A cascade: later attacks met only the images that still stood" in page.text()
    # each stretch begins where the one before it ended
    stretches = re.findall(r'class="stretch"[^>]*><span style="left:([\d.]+)%;width:([\d.]+)%', page.html)
    ends = [0.0]
    for left, width in stretches:
        assert float(left) == pytest.approx(ends[-1], abs=0.011)
        ends.append(float(left) + float(width))
    assert ends[-1] == pytest.approx(100, abs=0.02)


def test_success_in_a_cascade_counts_the_images_it_met(cascade, tmp_path):
    page = Page(report([cascade], tmp_path / "r.html"))
    text = page.text()
    assert "3 of 7" in text
    assert "1 of 4" in text


def test_without_a_cascade_it_is_told_what_only_one_attack_turned(tmp_path):
    attacks = {
        "one": ("bounded", "", {"prediction": [1, 1, 0, 0], "forwards": [1, 1, 2, 2], "verifications": [1, 1, 0, 0]}),
        "two": ("bounded", "", {"prediction": [0, 1, 1, 0], "forwards": [3, 3, 3, 3]}),
    }
    page = Page(report([judged("m", np.zeros(4), np.zeros(4), attacks)], tmp_path / "r.html"))
    heads, *told = rows(page, "What each attack did")
    assert [head.split(" mean")[0] for head in heads] == [
        "attack",
        "turned first in this order, of all images",
        "turned in all",
        "only this one",
        "forward passes",
        "verifications",
    ]
    assert told[1:3] == [
        ["one", "50.0 % 2 images", "2", "1", "1.5", "0.5"],
        ["two", "25.0 % 1 image", "2", "1", "3", "0"],
    ]


def test_of_minimal_attacks_the_nearest_is_told(minimal, tmp_path):
    page = Page(report([minimal], tmp_path / "r.html"))
    assert rows(page, "What each attack did")[2:4] == [
        ["near", "20.0 % 1 image", "2", "0", "9"],
        ["far", "40.0 % 2 images", "3", "1", "7"],
    ]


# findings


def test_findings_are_counted_red_first_and_unknown_verdicts_are_notes():
    found = [Finding("a", verdict, "", "", "") for verdict in ("trust", "doubt", "trust", "odd")]
    assert [(one.verdict, one.text.replace("\xa0", " ")) for one in lights(found)] == [
        ("doubt", "1 doubt"),
        ("note", "1 note"),
        ("trust", "2 passed checks"),
    ]


def test_the_count_stands_at_the_top_with_a_symbol_and_a_word_for_each_light(three_runs, tmp_path):
    page = Page(report(three_runs, tmp_path / "r.html"))
    counts = page.texts("ul", **{"class": "lights"})
    assert counts[:3] == ["1 note 2 passed checks", "1 doubt 1 note 1 passed check", "1 note 2 passed checks"]
    lists = re.findall(r'<ul class="lights">(.*?)</ul>', page.html, re.S)
    for item in re.findall(r"<li.*?</li>", "".join(lists), re.S):
        assert re.search(r'<use href="#icon-(doubt|note|trust)"', item)
    shapes = re.findall(r'<symbol id="icon-\w+" viewBox="0 0 16 16"><(\w+)', page.html)
    assert len(set(shapes)) == 3  # told apart without their colours


# from the easiest image to the hardest


def specimens(page):
    return [
        " ".join(re.sub(r"<[^>]*>", " ", item).split())
        for item in re.findall(r"<li class=\"\w[^>]*>\n<div class=\"pair\".*?</li>", page.html, re.S)
    ]


def test_images_are_in_the_order_of_the_passes_they_took_and_those_that_stand_come_last(cascade, tmp_path):
    page = Page(report([cascade], tmp_path / "r.html"))
    assert specimens(page) == [
        "class 0 ×0.5 class 0 → class 2 turned after 2 forward passes image 2, first".replace("×0.5", factor(2)),
        "class 0 ×0.5 class 0 → class 1 turned after 5 forward passes image 1, first".replace("×0.5", factor(1)),
        "class 0 ×0.5 class 0 → class 7 turned after 40 forward passes image 4, second".replace("×0.5", factor(4)),
        "class 0 ×0.5 class 0 stands after 110 forward passes image 5, second".replace("×0.5", factor(5)),
        "class 0 ×0.5 class 0 stands after 110 forward passes image 6, second".replace("×0.5", factor(6)),
    ]


def factor(index):
    one = exhibit("", index, 0, 0, 0)
    return f"×{0.5 / np.abs(one.adversarial - one.original).max():.3g}"


def test_images_of_minimal_attacks_are_in_the_order_of_their_distance(minimal, tmp_path):
    page = Page(report([minimal], tmp_path / "r.html"))
    told = [text.split(" turned ")[-1].split(" stands ")[-1] for text in specimens(page)]
    assert told == [
        "at L2 0.1 image 1, near",
        "at L2 0.2; shown at 0.3 image 2, near",  # the picture is of an attack that went farther
        "after 16 forward passes image 4, near",
    ]
    assert "3 images by the L2 distance of the nearest wrong answer" in page.text()


def test_a_bound_makes_passes_the_measure(minimal, cascade):
    assert seeks_nearest(minimal) == "L2"
    assert seeks_nearest(cascade) == ""
    assert seeks_nearest(replace(minimal, attacks=[*minimal.attacks, *cascade.attacks])) == ""


def test_large_pictures_are_kept_at_no_more_than_twice_their_size(cascade, tmp_path):
    large = exhibit("second", 5, 0, 0, 0, side=500)
    page = Page(report([replace(cascade, specimens=[large])], tmp_path / "r.html"))
    images = page.all("img")
    assert len(images) == 3
    for image in images:
        assert (image["width"], image["height"]) == (str(SIDE), str(SIDE))
        assert max(Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))).size) <= 2 * SIDE
    small = shrunk(large.original, SIDE)
    assert small[0, 0, 0] == pytest.approx(large.original[0, :3, :3].mean())
    assert small[0, 2, 5] == pytest.approx(large.original[0, 6:9, 15:18].mean())


def test_what_a_user_named_is_escaped_in_the_new_parts_too(cascade, minimal, tmp_path):
    hostile = "<script>alert(1)</script>"

    def renamed(evaluation):
        attacks = [replace(one, name=one.name + hostile) for one in evaluation.attacks]
        shown = [replace(one, attack=one.attack + hostile) for one in evaluation.specimens]
        curves = [replace(curve, attack=curve.attack + hostile) for curve in CURVES]
        return replace(
            evaluation, model=hostile, classes=[hostile] * 10, attacks=attacks, specimens=shown, curves=curves
        )

    both = [renamed(cascade), renamed(cascade), renamed(minimal)]
    page = Page(report(both, tmp_path / "r.html", compare=True))
    assert not page.all("script")
    assert hostile in page.text()
