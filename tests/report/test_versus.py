import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from made_up import exhibit, judged
from parsed_page import Page
from scipy.stats import binomtest

from bessemer.errors import FileError, UsageError
from bessemer.records import Finding, RunRecord
from bessemer.report import report
from bessemer.report.paired import Paired, Sided, coin

# the counts: held by both, by the first alone, by the second alone, by neither


@pytest.mark.parametrize(
    ("counts", "difference", "interval"),
    [
        # Newcombe 1998, table II, method 10
        ((36, 12, 2, 0), 0.2, (0.0569, 0.3404)),
        # Fagerland, Lydersen and Laake, "Statistical analysis of contingency tables", 2017, chapter 8: complete
        # response before and after consolidation therapy (Cavo et al., 2012)
        ((59, 6, 16, 80), -0.0621, (-0.1186, -0.0046)),
    ],
)
def test_the_interval_is_the_published_one(counts, difference, interval):
    paired = Paired(*counts)
    # they subtract the second from the first
    assert -paired.difference == pytest.approx(difference, abs=5e-5)
    assert tuple(-end for end in reversed(paired.interval)) == pytest.approx(interval, abs=6e-5)


def test_the_interval_is_newcombes_formula_written_out():
    def wilson(share, n, z=1.959963984540054):
        root = np.sqrt(z * z + 4 * n * share * (1 - share))
        return [(2 * n * share + z * z + sign * z * root) / (2 * (n + z * z)) for sign in (-1, 1)]

    for a, b, c, d in product((0, 1, 4, 30), repeat=4):
        n = a + b + c + d
        if n == 0:
            continue
        p1, p2 = (a + b) / n, (a + c) / n
        (l1, u1), (l2, u2) = wilson(p1, n), wilson(p2, n)
        margins = (a + b) * (c + d) * (a + c) * (b + d)
        excess = a * d - b * c
        excess = excess - n / 2 if excess > n / 2 else 0 if excess >= 0 else excess
        phi = excess / np.sqrt(margins) if margins else 0
        low = p1 - p2 - np.sqrt((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2)
        high = p1 - p2 + np.sqrt((p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2)
        assert Paired(a, c, b, d).interval == pytest.approx((low, high), abs=1e-7)


def test_the_interval_holds_the_difference_and_turns_over_with_the_order():
    for counts in product((0, 3, 20), repeat=4):
        if sum(counts) == 0:
            continue
        both, first, second, neither = counts
        one, other = Paired(*counts), Paired(both, second, first, neither)
        low, high = one.interval
        assert -1 <= low <= one.difference <= high <= 1
        assert other.interval == pytest.approx((-high, -low), abs=1e-12)


def test_of_nothing_nothing_is_known():
    assert np.isnan(Paired(0, 0, 0, 0).difference)
    assert Paired(0, 0, 0, 0).interval == (-1, 1)
    assert Paired(0, 0, 0, 0).verdict == "cannot tell"


@pytest.mark.parametrize(("heads", "tails"), [(0, 0), (1, 0), (7, 1), (6, 16), (12, 2), (10, 10), (130, 200)])
def test_the_exact_test_is_the_binomial_one(heads, tails):
    expected = binomtest(heads, heads + tails).pvalue if heads + tails else 1
    assert coin(heads, tails) == coin(tails, heads) == pytest.approx(expected, rel=1e-12)


def test_large_counts_stay_exact():
    assert coin(25_400, 24_600) == pytest.approx(binomtest(24_600, 50_000).pvalue, rel=1e-9)
    assert coin(4_000, 0) == 0.0


def test_verdicts_follow_the_test_and_the_direction():
    assert Paired(10, 0, 6, 10).verdict == "better"  # p = 1/32
    assert Paired(10, 6, 0, 10).verdict == "worse"
    assert Paired(10, 0, 5, 10).verdict == "cannot tell"  # p = 1/16
    assert Sided(6, 0).verdict == "better"
    assert Sided.of(np.array([1.0, np.inf, 2.0]), np.array([2.0, np.inf, 1.0])) == Sided(1, 1)


# the page


def holding(model, held, *, total=100, **more):
    """An evaluation under one bounded attack that leaves the images numbered `held` standing."""
    prediction = np.ones(total)
    prediction[list(held)] = 0
    attacks = {"PGD": ("bounded", "", {"prediction": prediction})}
    return judged(model, np.zeros(total), np.zeros(total), attacks, **more)


@pytest.fixture
def strong():
    return holding("strong", range(20, 80))


@pytest.fixture
def weak():
    return holding("weak", range(10, 40))


def lines(page, *starts):
    return [text for text in page.texts("tr") if text.startswith(starts)]


def test_two_runs_are_compared_image_by_image(strong, weak, tmp_path):
    page = Page(report([weak, strong], tmp_path / "r.html", compare=True))
    both, only_weak, only_strong = 20, 10, 40
    paired = Paired(both, only_weak, only_strong, 100 - both - only_weak - only_strong)
    low, high = paired.interval
    points = f"+30.0 points [+{100 * low:.1f}, +{100 * high:.1f}]"
    assert f"worst case every attack with a bound 30.0 % 60.0 % {points} 10 40 better p < 0.001" in page.text()
    assert f"strong is better than weak in the worst case: {points}, p < 0.001." in page.text()
    assert "clean nobody attacks 100.0 % 100.0 % 0.0 points [−3.7, +3.7] 0 0 cannot tell p = 1.000" in page.text()
    assert "Each against weak, on the same 100 images." in page.text()


def test_the_first_run_is_what_the_others_are_held_against(strong, weak, tmp_path):
    page = Page(report([strong, weak, strong], tmp_path / "r.html", compare=True))
    assert "weak is worse than strong in the worst case: −30.0 points" in page.text()
    assert "strong (2) cannot be told from strong in the worst case: 0.0 points" in page.text()
    assert "weak against strong (2)" not in page.text()


def test_the_images_that_only_one_holds_are_named_and_shown(strong, weak, tmp_path):
    shown = [exhibit("PGD", 45, 0, 0, 1), exhibit("PGD", 5, 0, 0, 1), exhibit("PGD", 25, 0, 0, 0)]
    page = Page(report([replace(weak, specimens=shown), strong], tmp_path / "r.html", compare=True))
    text = page.text()
    assert f"10 images that weak holds and strong does not {', '.join(str(i) for i in range(10, 20))}" in text
    assert f"40 images that strong holds and weak does not {', '.join(str(i) for i in range(40, 80))}" in text
    thumbnails = [image["alt"] for image in page.all("img") if image["alt"].startswith("Image 45 as it turned")]
    assert thumbnails == ["Image 45 as it turned weak: class 0 taken for class 1"]
    assert "Image 5 as it turned" not in page.html  # both lost it
    assert "45: class 0 → class 1" in text


def test_without_compare_the_page_has_no_such_part(strong, weak, tmp_path):
    page = Page(report([weak, strong], tmp_path / "r.html"))
    assert not page.all("h2", id="compare")
    assert "McNemar" not in page.text()


def test_only_the_images_that_both_met_are_compared(strong, tmp_path):
    longer = holding("longer", range(20, 150), total=150)
    page = Page(report([longer, strong], tmp_path / "r.html", compare=True))
    assert "Each against longer, on the images that both met (strong 100)." in page.text()
    # 20 … 99 of the longer one, 20 … 79 of the other
    assert "80.0 % 60.0 % −20.0 points" in page.text()


def test_images_of_another_label_are_other_images(strong, weak, tmp_path):
    label = weak.label.copy()
    label[50:] = 3
    other = replace(weak, label=label, prediction=label)
    page = Page(report([strong, other], tmp_path / "r.html", compare=True))
    assert "on the images that both met (weak 50)" in page.text()


def test_other_conditions_are_not_compared(strong, weak, tmp_path):
    page = Page(report([strong, replace(weak, threat="Linf:0.2")], tmp_path / "r.html", compare=True))
    assert "No two of these runs were evaluated with one suite, on the same images, against one threat" in page.text()
    assert "Suite own, data made up, Linf 0.2 (51/255) (weak)" in page.text()
    assert lines(page, "worst case every attack with a bound −") == []


def test_a_worst_case_over_other_attacks_is_not_compared(strong, weak, tmp_path):
    more = replace(weak, attacks=[*weak.attacks, replace(weak.attacks[0], name="another")])
    page = Page(report([strong, more], tmp_path / "r.html", compare=True))
    assert "worst case not over the same attacks – – – – – –" in page.text()
    assert "weak cannot be told from strong when nobody attacks" in page.text()


def test_a_doubt_about_either_run_is_said_beside_the_verdict(strong, weak, tmp_path):
    doubt = Finding("zero gradients", "doubt", "29 %", "it was blind", "", "PGD")
    page = Page(report([weak, replace(strong, findings=[doubt])], tmp_path / "r.html", compare=True))
    assert "This cannot be trusted: the worst case of strong is in doubt." in page.text()
    compared = re.search(r'<section aria-labelledby="compare">.*?</section>', page.html, re.S)[0]
    rows = re.findall(r"<tr.*?</tr>", compared, re.S)
    assert [("doubt" in row) for row in rows if "PGD" in row or "worst case" in row] == [True, True]


def test_distances_are_compared_by_the_sign_test(tmp_path):
    random = np.random.default_rng(0)
    near = random.random(40)
    attacks = {name: ("minimal", "L2", {"prediction": np.ones(40), "l2": near}) for name in ("one", "two")}
    farther = {key: (*kept, {**columns, "l2": near + 0.1}) for key, (*kept, columns) in attacks.items()}
    label = np.zeros(40)
    runs = [judged("near", label, label, attacks), judged("far", label, label, farther)]
    page = Page(report(runs, tmp_path / "r.html", compare=True))
    assert (
        "far is better than near by the L2 distance of the nearest wrong answer: farther on 40 images, nearer on 0, "
        "p < 0.001." in page.text()
    )
    medians = f"{np.median(near):.3g} {np.median(near) + 0.1:.3g}"
    assert f"one L2 {medians} 40 0 better p < 0.001" in page.text()
    assert f"nearest of all L2 {medians} 40 0 better p < 0.001" in page.text()


def test_comparing_takes_two(strong, tmp_path):
    with pytest.raises(UsageError, match="two runs or more, and the list holds one"):
        report([strong], tmp_path / "r.html", compare=True)


def test_the_way_back_to_the_page_says_compare(three_runs, strong, weak, tmp_path):
    page = Page(report(three_runs, tmp_path / "r.html", compare=True))
    assert page.all("pre")[-1]["text"] == "bessemer report regular bang adversarial --compare --out report.html"
    page = Page(report([weak, strong], tmp_path / "r.html", compare=True))
    assert page.all("pre")[-1]["text"] == 'bessemer.report([evaluation, …], "report.html", compare=True)'


def test_the_same_records_give_the_same_comparison(three_runs, tmp_path):
    pages = [report(three_runs, tmp_path / name, compare=True).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_runs_without_evaluations_have_nothing_to_compare(tmp_path):
    page = Page(report([RunRecord("a"), RunRecord("b")], tmp_path / "r.html", compare=True))
    assert "none was evaluated at all" in page.text()


# files of evaluations beside run folders


def test_a_file_that_an_evaluation_saved_is_an_item(strong, weak, tmp_path):
    paths = [evaluation.save(tmp_path / evaluation.model) for evaluation in (weak, strong)]
    page = Page(report([str(paths[0]), paths[1]], tmp_path / "r.html", compare=True))
    assert page.texts("h1") == ["How weak and strong hold under attack"]
    assert "strong is better than weak" in page.text()
    assert page.all("pre")[-1]["text"] == f"bessemer report {paths[0]} {paths[1]} --compare --out report.html"


def test_a_file_that_is_missing_or_no_evaluation_is_named(tmp_path):
    with pytest.raises(FileError, match=r"missing\.json cannot be read"):
        report([tmp_path / "missing.json"], tmp_path / "r.html")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(FileError, match=r"other\.json is JSON, but no record"):
        report([tmp_path / "other.json"], tmp_path / "r.html")


def test_the_command_line_takes_files_and_compares(strong, weak, tmp_path):
    from typer.testing import CliRunner

    from bessemer.cli.main import app

    paths = [str(evaluation.save(tmp_path / evaluation.model)) for evaluation in (weak, strong)]
    done = CliRunner().invoke(app, ["report", *paths, "--compare", "--out", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    assert "strong is better than weak" in Page(tmp_path / "page.html").text()
    done = CliRunner().invoke(app, ["report", paths[0]])
    assert done.exit_code == 0, done.output
    beside = paths[0].removesuffix(".json") + ".html"
    assert beside in done.output.replace("\n", "")
    assert Page(beside).texts("h1") == ["How weak holds under attack"]
