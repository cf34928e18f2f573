import base64
import io
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import tomli_w
from parsed_page import Page
from PIL import Image

from bessemer.errors import FileError, UsageError
from bessemer.records import Curve, Evaluation, Finding, RunRecord, write_record
from bessemer.report import report
from bessemer.report.comparison import worst_case_doubts
from bessemer.report.gallery import magnified


@pytest.fixture(scope="module")
def page(three_runs, tmp_path_factory):
    return Page(report(three_runs, tmp_path_factory.mktemp("page") / "report.html"))


def only(run, **changes):
    """A run with one evaluation, changed."""
    return replace(run, evaluations=[replace(run.evaluations[0], **changes)])


def test_the_page_says_what_it_is_about(page):
    assert page.texts("h1") == ["How regular, bang and adversarial hold under attack"]
    assert page.texts("title")[0] == page.texts("h1")[0]


def test_the_headline_is_the_worst_case_counted_from_the_rows(page, three_runs):
    numbers = page.texts("p", **{"class": "number"}) + page.texts("p", **{"class": "number doubted"})
    for run, place in zip(three_runs, (0, 2, 1), strict=True):
        evaluation = run.evaluations[0]
        alive = [
            i
            for i in range(len(evaluation.index))
            if evaluation.prediction[i] == evaluation.label[i]
            and all(
                rows["prediction"][i] == evaluation.label[i] for rows in evaluation.attacks if "Linf" in rows.threat
            )
        ]
        assert numbers[place].startswith(f"{100 * len(alive) / 200:.1f} %")


def test_every_run_says_itself_in_a_sentence(page):
    sentences = page.texts("p", **{"class": "sentence"})
    assert sentences[0] == (
        "97.0 % of 200 images (digits test) are classified correctly, and 9.5 % still are when every pixel may move "
        "by up to 0.1 (25.5/255)."
    )
    assert len(sentences) == 3


def test_a_doubted_figure_says_that_it_cannot_be_trusted_and_why(page):
    (warning,) = page.texts("div", **{"class": "warning"})
    assert warning == (
        "This figure cannot be trusted. Gradients that are all zero: 29.3 % of images. "
        "the loss underflowed, so a gradient attack did not know where to go"
    )
    (number,) = page.texts("p", **{"class": "number doubted"})
    assert number == "53.5 % doubt"


def test_a_doubt_marks_its_attack_and_the_worst_case_with_a_word(page):
    rows = [" ".join(row["text"].split()) for row in page.all("tr")]
    marked = [row for row in rows if "doubt" in row]
    assert [row.split(" within")[0].split(" every")[0] for row in marked] == [
        "PGD-20",
        "worst case",
        "bang 44.8 % doubt 87 of 194 [38.0, 51.9] not measured 25.5 ± 0.0 0.40 ± 0.00 30.9 % in float64 0.0 %",
    ]
    assert marked[0].count("doubt") == marked[1].count("doubt") == 1


def test_the_table_has_every_attack_with_interval_and_both_units(page):
    text = page.text()
    assert "FGSM within Linf 0.1 (25.5/255) 34.0 % [27.8, 40.8] 77.5 % [71.2, 82.7] 82.5 % [76.6, 87.1]" in text
    assert "HotCold nearest wrong answer, any distance 0.0 % [0.0, 1.9] 5.0 % [2.7, 9.0] 0.0 % [0.0, 1.9]" in text


def test_what_was_produced_is_told_in_pass_and_grey_levels(page, three_runs):
    evaluation = three_runs[0].evaluations[0]
    rows = evaluation.attack("HotCold")
    right = evaluation.prediction == evaluation.label
    linf, score = 255 * rows["linf"][right], rows["pass_score"][right]
    expected = f"{score.mean():.3f} ± {score.std():.3f} {linf.mean():.1f} ± {linf.std():.1f}"
    assert expected in page.text()


def test_success_rates_count_right_images_only(page):
    assert "regular 64.9 % 126 of 194 [58.0, 71.3]" in page.text()


def test_every_curve_has_its_table(page, three_runs):
    assert "Robust accuracy over the Linf radius under PGD-20" in page.texts("title")
    assert "0.05 (12.75/255) 40.0 % [33.5, 46.9] 75.0 % [68.6, 80.5] 87.0 % [81.6, 91.0]" in page.text()


def test_findings_are_said_with_icon_word_figure_meaning_and_advice(page):
    doubts = page.texts("li", **{"class": "doubt"})
    assert doubts == [
        "doubt Gradients that are all zero PGD-20 29.3 % of images The loss underflowed, so a gradient attack did not "
        "know where to go Next: attack again with a margin loss, or in float64"
    ]
    assert len(page.texts("li", **{"class": "note"})) == 3
    assert len(page.texts("li", **{"class": "trust"})) == 5
    assert page.text().count("trust 2 checks passed") == 2


def test_provenance_and_recipe_and_the_way_back_are_there(page):
    text = page.text()
    for expected in ("commit 0123456789ab", "torch 2.13.0", "cores 2", "seed 0", "took 1 min 23 s", "epsilon = 0.815"):
        assert expected in text
    commands = [element["text"] for element in page.all("pre")][-2:]
    assert commands[0].splitlines() == [
        f"bessemer evaluate runs/{name} --suite quick" for name in ("regular", "bang", "adversarial")
    ]
    assert commands[1] == "bessemer report regular bang adversarial --out report.html"


# the gallery


def pixels(element):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(element["src"].split(",")[1]))))


def test_the_gallery_shows_the_pixels_of_the_record(page, three_runs):
    exhibit = three_runs[0].evaluations[0].gallery[0]
    original = page.all("img", alt="Original image 3, of class 3")[0]
    assert np.array_equal(pixels(original), np.rint(255 * exhibit.original[0]).astype(np.uint8))
    (attacked,) = [image for image in page.all("img") if image["alt"].startswith("Image 3 under FGSM against regular")]
    kept = exhibit.adversarial[0].astype(np.float16).astype(np.float64)  # as a file keeps them
    assert np.array_equal(pixels(attacked), np.rint(255 * kept).astype(np.uint8))


def test_small_images_are_enlarged_by_whole_pixels(page):
    for image in page.all("img"):
        assert int(image["width"]) % 8 == 0
        assert image["class"] == "pixels"


def test_an_image_that_runs_share_is_shown_once_beside_them(page):
    assert len(page.all("img", alt="Original image 12, of class 2")) == 3  # once per attack, not per run
    assert page.text().count("Image 12 label 2 regular") == 3


def test_the_change_fills_the_range_and_states_its_factor(three_runs):
    exhibit = three_runs[0].evaluations[0].gallery[0]
    shown, factor = magnified(exhibit)
    change = exhibit.adversarial.astype(float) - exhibit.original
    assert factor == pytest.approx(0.5 / np.abs(change).max())
    np.testing.assert_allclose(shown, 0.5 + factor * change)
    assert max(shown.max() - 0.5, 0.5 - shown.min()) == pytest.approx(0.5)
    assert (shown[change == 0] == 0.5).all()


def test_an_image_without_change_is_grey_and_says_so(three_runs, tmp_path):
    exhibit = three_runs[0].evaluations[0].gallery[0]
    still = replace(exhibit, adversarial=exhibit.original, linf=0.0, l2=0.0)
    page = Page(report([only(three_runs[0], gallery=[still])], tmp_path / "r.html"))
    assert page.texts("figcaption") == ["label 3", "no change", "attacked"]
    assert set(pixels(page.all("img")[1]).ravel()) <= {127, 128}


@pytest.mark.parametrize(("shape", "mode", "width"), [((3, 32, 32), "RGB", 96), ((1, 28, 28), "L", 112)])
def test_colour_and_grey_images_are_drawn_in_their_own_mode(three_runs, tmp_path, shape, mode, width):
    exhibit = three_runs[0].evaluations[0].gallery[0]
    image = np.random.default_rng(0).random(shape, np.float32)
    shown = replace(exhibit, original=image, adversarial=image)
    page = Page(report([only(three_runs[0], gallery=[shown])], tmp_path / "r.html"))
    first = page.all("img")[0]
    assert Image.open(io.BytesIO(base64.b64decode(first["src"].split(",")[1]))).mode == mode
    assert int(first["width"]) == width


def test_a_large_image_is_shrunk_to_fit(three_runs, tmp_path):
    exhibit = three_runs[0].evaluations[0].gallery[0]
    image = np.zeros((3, 200, 400), np.float32)
    page = Page(
        report([only(three_runs[0], gallery=[replace(exhibit, original=image, adversarial=image)])], tmp_path / "r")
    )
    first = page.all("img")[0]
    assert (first["width"], first["height"]) == ("112", "56")


def test_a_class_beyond_the_names_is_shown_by_its_number(three_runs, tmp_path):
    page = Page(report([only(three_runs[0], classes=["zero"])], tmp_path / "r.html"))
    assert "label 3" in page.texts("figcaption")


# one page, whole and safe


def test_names_cannot_become_markup(three_runs, tmp_path):
    evil = '<script>alert("1")</script>'
    evaluation = three_runs[0].evaluations[0]
    changed = replace(
        evaluation,
        classes=[evil] * 10,
        data=evil,
        model=evil,
        notes={evil: evil},
        provenance={"command": evil},
        findings=[Finding(evil, "doubt", evil, evil, evil, evil)],
        attacks=[replace(rows, name=evil, attack=evil) for rows in evaluation.attacks[:1]],
        curves=[replace(evaluation.curves[0], attack=evil)],
        gallery=[replace(evaluation.gallery[0], attack=evil)],
    )
    run = replace(three_runs[0], name=evil, recipe={"a": evil}, evaluations=[changed])
    page = Page(report([run, changed], tmp_path / "r.html"))
    assert "<script" not in page.html
    assert not page.all("script")
    assert page.text().count(evil) > 10
    assert any(evil in image["alt"] for image in page.all("img"))


def test_dollars_in_names_are_not_read_as_mathematics(three_runs, tmp_path):
    run = only(
        replace(three_runs[0], name="$\\frac{$"), curves=[replace(three_runs[0].evaluations[0].curves[0], attack="$_$")]
    )
    assert "$_$" in Page(report([run], tmp_path / "r.html")).text()


def test_the_page_needs_nothing_from_elsewhere(page):
    for element in page.elements:
        for key in ("src", "href", "xlink:href", "action", "poster", "srcset"):
            assert element.get(key, "#").startswith(("#", "data:")), element
    assert not re.findall(r"url\((?!#)", page.html)
    assert not page.all("script", "iframe", "object")
    assert set(re.findall(r"https?://[\w./]*", page.html)) <= {"http://www.w3.org/2000/svg"}


def test_identifiers_are_unique_and_every_reference_finds_its_own(page):
    names = [element["id"] for element in page.elements if "id" in element]
    assert len(names) == len(set(names))
    wanted = set(re.findall(r'(?:href="#|url\(#)([\w-]+)', page.html))
    for element in page.elements:
        wanted |= set(element.get("aria-labelledby", "").split())
    assert wanted <= set(names)


def test_a_screen_reader_finds_its_way(page):
    assert page.all("html", lang="en")
    assert [len(page.all(tag)) for tag in ("main", "nav", "header", "footer", "h1")] == [1] * 5
    levels = [int(element["tag"][1]) for element in page.all("h1", "h2", "h3", "h4", "h5")]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(element["alt"] for element in page.all("img"))
    assert len(page.all("caption")) == len(page.all("table")) > 0
    assert all(element.get("scope") for element in page.all("th"))
    drawings = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(drawings) == 3
    assert all(svg.get("role") == "img" or svg.get("aria-hidden") == "true" for svg in page.all("svg"))
    assert page.all("a", href="#main", **{"class": "skip"})


def test_figures_take_the_colours_of_the_page(page):
    drawings = re.findall(r'<svg[^>]*role="img".*?</svg>', page.html, re.S)
    for drawing in drawings:
        assert set(re.findall(r"#[0-9a-f]{6}", drawing)) == set()
        assert "currentColor" in drawing
        assert "font-family" not in drawing
        assert "var(--run-1)" in drawing


def test_the_same_records_give_the_same_bytes(three_runs, tmp_path):
    first = report(three_runs, tmp_path / "a.html").read_bytes()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": None}):
        second = report(list(three_runs), tmp_path / "elsewhere" / "b.html").read_bytes()
    assert first == second


def test_a_folder_its_record_and_a_model_from_it_give_the_same_page(three_runs, tmp_path):
    run = three_runs[1]
    folder = tmp_path / run.name
    folder.mkdir()
    (folder / "recipe.toml").write_text(tomli_w.dumps(run.recipe))
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n".replace("'", '"') for line in run.metrics))
    run.evaluations[0].save(folder / "records")
    write_record(folder / "provenance.json", {"command": "bessemer train bang", "seconds": 9.5})

    class Model:
        pass

    model = Model()
    model.folder = folder
    pages = [report([item], tmp_path / "r.html").read_bytes() for item in (folder, str(folder), model)]
    pages.append(report([RunRecord.read(folder)], tmp_path / "r.html").read_bytes())
    assert len(set(pages)) == 1
    assert b"bessemer train bang\n" in pages[0]


# what may be missing


def test_a_run_that_was_not_evaluated_says_so(three_runs, tmp_path):
    page = Page(report([replace(three_runs[0], evaluations=[])], tmp_path / "r.html"))
    assert page.texts("p", **{"class": "number"}) == ["–"]
    assert "Validation accuracy was 97.2 % at the end of training. Nothing has attacked this network yet" in page.text()
    assert page.texts("h2") == ["The headline", "Training", "Provenance", "How to read this page"]


def test_a_bare_name_is_enough_for_a_page(tmp_path):
    assert "Nothing has attacked" in Page(report([RunRecord("empty")], tmp_path / "r.html")).text()


def test_an_evaluation_alone_is_a_page(three_runs, tmp_path):
    page = Page(report([three_runs[0].evaluations[0]], tmp_path / "r.html"))
    assert page.texts("h1") == ["How regular holds under attack"]
    assert not page.all("h2", id="training")
    assert 'bessemer.report([evaluation, …], "report.html")' in page.text()


def test_without_curves_findings_and_gallery_the_sections_are_left_out(three_runs, tmp_path):
    page = Page(report([only(three_runs[0], curves=[], gallery=[], findings=[], notes={})], tmp_path / "r.html"))
    assert not page.all("h2", id="gallery")
    assert not page.all("h2", id="radius")
    assert "Nothing was looked for." in page.text()


def test_where_every_attack_fails_there_is_no_mean_and_no_nan(three_runs, tmp_path):
    run = three_runs[0]
    evaluation = run.evaluations[0]
    attacks = [
        replace(rows, columns={**rows.columns, "prediction": evaluation.label.copy()}) for rows in evaluation.attacks
    ]
    page = Page(report([only(run, attacks=attacks)], tmp_path / "r.html"))
    assert not re.search(r"\bnan\b", page.text(), re.I)
    assert "0.0 % 0 of 194 [0.0, 1.9] – – –" in page.text()


def test_pass_that_was_not_measured_has_no_column(three_runs, tmp_path):
    evaluation = three_runs[0].evaluations[0]
    page = Page(report([only(three_runs[0], attacks=evaluation.attacks[:2])], tmp_path / "r.html"))
    heads = [text for text in page.texts("th") if text.startswith("PASS")]
    assert heads == []


def test_where_no_image_was_right_nothing_divides_by_zero(three_runs, tmp_path):
    evaluation = three_runs[0].evaluations[0]
    wrong = only(three_runs[0], prediction=(evaluation.label + 1) % 10)
    page = Page(report([wrong], tmp_path / "r.html"))
    assert not re.search(r"\bnan\b", page.text(), re.I)
    assert "none was right before" in page.text()


def test_without_a_bounded_attack_the_headline_is_clean_accuracy(three_runs, tmp_path):
    evaluation = three_runs[0].evaluations[0]
    page = Page(report([only(three_runs[0], attacks=evaluation.attacks[2:], threat="")], tmp_path / "r.html"))
    assert page.texts("p", **{"class": "number"}) == ["97.0 %"]
    assert "there is no robust accuracy. HotCold turned 100.0 % of the right answers" in page.text()


def test_losses_that_are_zero_or_no_number_leave_the_axis_whole(three_runs, tmp_path):
    metrics = [{"iteration": i, "loss": value} for i, value in enumerate([1.0, 0.0, float("nan"), float("inf"), 0.5])]
    page = Page(report([replace(three_runs[0], metrics=metrics)], tmp_path / "r.html"))
    assert "loss between 0.5 and 1, on a logarithmic axis" in page.html
    hopeless = [{"iteration": 1, "loss": float("nan")}]
    page = Page(report([replace(three_runs[0], metrics=hopeless)], tmp_path / "r.html"))
    assert "Loss" not in page.texts("h3")


def test_runs_of_one_name_are_told_apart(three_runs, tmp_path):
    page = Page(report([three_runs[0], three_runs[0], three_runs[0]], tmp_path / "r.html"))
    assert page.texts("h1") == ["How regular, regular (2) and regular (3) hold under attack"]


def test_many_runs_are_counted_in_the_title(three_runs, tmp_path):
    page = Page(report(three_runs * 3, tmp_path / "r.html"))
    assert page.texts("h1") == ["How 9 networks hold under attack"]
    looks = re.findall(r'<symbol id="run-\d+"(.*?)</symbol>', page.html)
    assert len(set(looks)) == 9


# what may be compared


def test_other_images_are_said_to_be_others(three_runs, tmp_path):
    other = only(three_runs[1], index=three_runs[1].evaluations[0].index + 7)
    page = Page(report([three_runs[0], other], tmp_path / "r.html"))
    assert (
        "The runs were not measured on the same images (regular 200 and bang 200): compare them with care."
        in page.text()
    )
    assert "the same for every run" not in page.text()


def test_another_threat_is_another_table(three_runs, tmp_path):
    other = only(three_runs[1], threat="L2:0.5")
    page = Page(report([three_runs[0], other], tmp_path / "r.html"))
    assert {"Suite quick, data digits test, Linf 0.1 (25.5/255)", "Suite quick, data digits test, L2 0.5"} <= set(
        page.texts("h3")
    )
    assert "the whole change may be up to 0.5 long (L2)" in page.text()


def test_an_attack_of_one_name_and_two_settings_has_two_rows(three_runs, tmp_path):
    evaluation = three_runs[1].evaluations[0]
    attacks = [replace(evaluation.attacks[1], attack="PGD(steps=5)"), *evaluation.attacks[2:]]
    page = Page(report([three_runs[0], only(three_runs[1], attacks=attacks)], tmp_path / "r.html"))
    rows = [text for text in page.texts("tr") if text.startswith("PGD-20")]
    assert rows[0].startswith("PGD-20 PGD(threat=Linf(eps=0.1), steps=20) 9.5 % [6.2, 14.4] not run")
    assert rows[1].startswith("PGD-20 PGD(steps=5) not run 53.5 %")


def test_a_suite_with_a_worst_case_comes_first(three_runs, tmp_path):
    evaluation = three_runs[0].evaluations[0]
    minimal = replace(evaluation, suite="bang", attacks=evaluation.attacks[2:])
    page = Page(report([replace(three_runs[0], evaluations=[minimal, evaluation])], tmp_path / "r.html"))
    suites = [text.split(",")[0] for text in page.texts("h3") if text.startswith("Suite")]
    assert list(dict.fromkeys(suites)) == ["Suite quick", "Suite bang"]
    assert "Suite bang: HotCold turned 100.0 % of the right answers" in page.text()


def test_the_headline_rests_on_the_suite_of_most_attacks_and_random_draws_are_none(three_runs, tmp_path):
    evaluation = three_runs[0].evaluations[0]
    draws = [replace(rows, name=f"draw {n}", kind="random") for n, rows in enumerate(evaluation.attacks[:2] * 2)]
    noise, quick = (
        replace(evaluation, suite="noise", attacks=draws),
        replace(evaluation, attacks=evaluation.attacks[:1]),
    )
    page = Page(report([replace(three_runs[0], evaluations=[noise, quick])], tmp_path / "r.html"))
    assert page.texts("p", **{"class": "counts"})[0].startswith("robust accuracy, worst case of 1")
    assert page.texts("p", **{"class": "number"}) == ["34.0 %"]


def doubt(attack):
    return Finding("zero gradients", "doubt", "29.3 %", "it was blind", "", attack)


def with_twin(run, surviving, forwards=20):
    """The run with a third bounded attack, without doubt, that leaves so many images standing."""
    evaluation = run.evaluations[0]
    rows = evaluation.attack("PGD-20")
    right = np.flatnonzero(evaluation.prediction == evaluation.label)
    prediction = (evaluation.label + 1) % 10
    prediction[right[:surviving]] = evaluation.label[right[:surviving]]
    columns = {**rows.columns, "prediction": prediction, "forwards": np.full(200, forwards)}
    twin = replace(rows, name="margin", attack="margin", columns=columns)
    return replace(evaluation, attacks=[*evaluation.attacks, twin], findings=[doubt("PGD-20")])


@pytest.mark.parametrize(
    ("surviving", "forwards", "trusted"),
    [
        (100, 20, True),
        (107, 20, True),
        (108, 20, False),  # it left more standing than the attack in doubt
        (100, 2, False),  # it did not work as hard
    ],
)
def test_a_doubt_is_answered_by_an_attack_that_worked_as_hard_and_left_no_more(
    three_runs, surviving, forwards, trusted
):
    evaluation = with_twin(three_runs[1], surviving, forwards)
    assert (worst_case_doubts(evaluation) == []) is trusted


def test_an_answered_doubt_is_still_said_beside_the_figure(three_runs, tmp_path):
    page = Page(report([replace(three_runs[1], evaluations=[with_twin(three_runs[1], 90)])], tmp_path / "r.html"))
    assert page.texts("p", **{"class": "number"}) == ["45.0 %"]
    assert page.texts("div", **{"class": "warning"}) == [
        "The figure of PGD-20 cannot be trusted. The worst case rests on another attack. "
        "Zero gradients: 29.3 %. it was blind"
    ]


def test_a_doubt_that_names_no_attack_reaches_the_worst_case(three_runs):
    evaluation = replace(with_twin(three_runs[1], 90), findings=[doubt("")])
    assert worst_case_doubts(evaluation) == [doubt("")]


def test_where_nothing_stands_nothing_is_doubted(three_runs):
    assert worst_case_doubts(with_twin(three_runs[1], 0, forwards=2)) == []


def test_radii_meant_for_a_logarithmic_axis_get_one(three_runs, tmp_path):
    eps = [0.0, 0.001, 0.002, 0.004, 0.008, 0.5]
    curve = Curve("PGD-20", "L2", eps, [190, 180, 120, 60, 10, 0], 200)
    page = Page(report([only(three_runs[0], curves=[curve])], tmp_path / "r.html"))
    drawn = [float(mark["x"]) for mark in page.all("use") if "--run-1" in mark.get("style", "")][: len(eps)]
    # on a linear axis the third of these radii would sit at 0.4 % of the width
    assert (drawn[2] - drawn[0]) / (drawn[-1] - drawn[0]) > 0.1
    assert "grey levels (n/255)" not in page.text()


# wrong use


@pytest.mark.parametrize("runs", ["runs/x", Path("runs/x"), RunRecord("x"), 3])
def test_one_run_without_a_list_is_refused_with_the_right_call(runs, tmp_path):
    with pytest.raises(UsageError, match=r"write report\(\[run\], path\)"):
        report(runs, tmp_path / "r.html")


def test_no_run_at_all_is_refused(tmp_path):
    with pytest.raises(UsageError, match="at least one run"):
        report([], tmp_path / "r.html")


def test_something_that_is_no_run_is_named_by_its_place(three_runs, tmp_path):
    with pytest.raises(UsageError, match="item 1 of the list is a dict without a run folder"):
        report([three_runs[0], {}], tmp_path / "r.html")


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(UsageError, match="is no run"):
        report([tmp_path], tmp_path / "r.html")


def test_a_folder_is_no_place_for_a_page(three_runs, tmp_path):
    with pytest.raises(UsageError, match=r"is a folder; name the file to write, such as .*report\.html"):
        report(three_runs, tmp_path)


def test_a_damaged_record_is_named_and_the_old_page_stays(three_runs, tmp_path):
    page = report(three_runs, tmp_path / "r.html").read_bytes()
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.toml").write_text("")
    path = three_runs[0].evaluations[0].save(folder / "records")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileError, match=r"quick\S*\.json is damaged"):
        report([folder], tmp_path / "r.html")
    assert (tmp_path / "r.html").read_bytes() == page


def test_an_evaluation_keeps_its_page_through_its_file(three_runs, tmp_path):
    evaluation = three_runs[0].evaluations[0]
    back = Evaluation.read(evaluation.save(tmp_path))
    assert report([evaluation], tmp_path / "a").read_bytes() == report([back], tmp_path / "b").read_bytes()


@pytest.mark.parametrize("end", [0.3, 0.5])
def test_grey_levels_stand_above_the_radius_they_are(end):
    """Also on the crowded axis, which is linear near 0 and logarithmic beyond."""
    from matplotlib import pyplot as plt

    from bessemer.report import figures

    radii = [0, 0.1, 0.2, end] if end < 0.5 else [0, 2 / 255, 4 / 255, 8 / 255, 16 / 255, end]
    figure, axes = plt.subplots()
    axes.plot(radii, radii)
    if figures._crowded(radii):
        axes.set_xscale("symlog", linthresh=2 / 255, linscale=0.5)
        axes.set_xlim(0, 0.55)
        axes.set_xticks([0, 0.01, 0.1, 0.5])
    figures._grey_levels(axes)
    figure.canvas.draw()
    top = figure.axes[-1] if len(figure.axes) > 1 else axes.child_axes[0]
    for tick, label in zip(top.get_xticks(), top.get_xticklabels(), strict=True):
        x, _ = top.transData.transform((tick, 0))
        wanted, _ = axes.transData.transform((float(label.get_text().replace("\N{MINUS SIGN}", "-")) / 255, 0))
        assert x == pytest.approx(wanted, abs=0.5), label
    plt.close(figure)
