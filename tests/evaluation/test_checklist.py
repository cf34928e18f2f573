"""Each sanity test of the checklist, passed and failed, on evaluations written by hand."""

import numpy as np
import pytest
import torch
from written import IMAGES, evaluation, rows

from bessemer.attacks import DDN, FAB, PGD, Square
from bessemer.data import load
from bessemer.evaluation import checklist, suites
from bessemer.evaluation.checklist import another_answer
from bessemer.records import WORST, Curve
from bessemer.threat import L1, L2, Linf


def pgd(turned, eps=0.1, **settings):
    attack = PGD(Linf(eps), **settings)
    found = rows(repr(attack), turned, repr(attack), forwards=0)
    steps = attack.steps * attack.restarts
    found["backwards"][:], found["forwards"][:] = steps, steps + attack.restarts
    found["forwards"][list(turned)] = 3  # they fell early
    return found


def minimal(name, turned, distance=1.0, **facts):
    found = rows(name, turned, f"{name}()", kind="minimal", **{"norm": "L2", **facts})
    found["l2"][list(turned)] = distance
    return found


def verdicts(found, name):
    return {finding.attack: finding.verdict for finding in checklist.findings(found) if finding.name == name}


def told(found, name):
    (finding,) = (finding for finding in checklist.findings(found) if finding.name == name)
    return finding


# --- more steps, more restarts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["steps", "restarts"])
def test_doubling_that_finds_more_is_doubted_and_doubling_that_does_not_is_trusted(setting):
    ten = pgd(range(100), **{setting: 10})
    flat, climbing = pgd(range(101), **{setting: 20}), pgd(range(120), **{setting: 20})
    assert list(verdicts(evaluation(ten, flat), f"{setting} have converged").values()) == ["trust"]
    assert verdicts(evaluation(ten, climbing), f"{setting} have converged") == {climbing.name: "doubt"}


def test_too_few_steps_are_only_noted_where_a_larger_budget_is_flat():
    few, some, many = pgd(range(80), steps=20), pgd(range(100), steps=100), pgd(range(100), steps=200)
    assert verdicts(evaluation(few, some, many), "steps have converged") == {few.name: "note", many.name: "trust"}
    # five times the steps are no doubling: what more of them find does not tell whether these are enough
    assert verdicts(evaluation(few, some), "steps have converged") == {few.name: "note"}


def test_attacks_of_ones_own_may_say_steps_and_threats_as_they_like():
    odd = [rows(f"own {text}", range(count), f"Own(threat=Mine(1), steps={text}, samples='many')") for text, count in (
        ("None", 10), ("(5, 10)", 50), ("20", 100), ("'10'", 20))]  # fmt: skip
    for place, found in enumerate(odd):
        object.__setattr__(found, "threat", f"Mine:{place}")
    assert verdicts(evaluation(*odd, threat="Mine:0"), "steps have converged") == {}


def test_budgets_are_not_compared_across_losses_nor_in_a_cascade():
    ten = pgd(range(50), steps=10)
    other = pgd(range(100), steps=20, loss="margin")
    later = rows("later", range(50, 100), repr(PGD(Linf(0.1), steps=20)), skipped=range(50))
    for more in (other, later):
        assert verdicts(evaluation(ten, more), "steps have converged") == {}


def test_what_still_falls_in_the_last_quarter_is_noted():
    early, late = pgd(range(100), steps=20), pgd(range(100), steps=20)
    late["forwards"][:5] = 19
    assert told(evaluation(early), "still climbing at the end").verdict == "trust"
    found = told(evaluation(late), "still climbing at the end")
    assert (found.verdict, found.attack) == ("note", late.name)
    assert found.figure.startswith("2.5 %")


def test_an_attack_that_nobody_leaves_early_does_not_tell_when_it_climbed():
    whole = rows("whole", range(100), repr(PGD(Linf(0.1), steps=20)))
    assert verdicts(evaluation(whole), "still climbing at the end") == {}


def test_what_a_cascade_skipped_did_not_fall_early():
    whole = rows("whole", range(50, 90), repr(PGD(Linf(0.1), steps=20)), skipped=range(50))
    assert verdicts(evaluation(whole), "still climbing at the end") == {}  # whom it met, it kept to the end
    whole["forwards"][50:90] = 2
    assert told(evaluation(whole), "still climbing at the end").verdict == "trust"


# --- the radius ------------------------------------------------------------------------------------------------------


def test_the_same_attack_at_a_larger_radius_turns_no_fewer():
    small, large, lost = pgd(range(60), eps=0.1), pgd(range(61), eps=0.2), pgd(range(40), eps=0.2)
    for found in (large, lost):
        object.__setattr__(found, "threat", "Linf:0.2")
    name = "a larger radius turns no fewer"
    assert verdicts(evaluation(small, large), name) == {large.name: "trust"}
    assert verdicts(evaluation(lost, small), name) == {lost.name: "doubt"}


def test_at_half_the_range_of_pixels_no_more_than_chance_is_left():
    label = np.zeros(IMAGES, np.int64)
    label[:100] = 1  # always answering one class gets 100 of 200 right

    def at_half(standing, name="PGD"):
        found = evaluation(curves=[Curve(name, "Linf", [0.0, 0.1, 0.5], [200, 150, standing], 200)], prediction=label)
        found.label[:] = label
        return told(found, "a radius of 0.5 leaves chance")

    assert at_half(102).verdict == "trust"
    assert at_half(103).verdict == "doubt"
    assert at_half(103).attack == "PGD"
    assert at_half(103, WORST).attack == ""  # the union of several stands for all of them


def test_vectors_without_a_box_have_no_grey():
    curve = Curve("PGD", "Linf", [0.0, 0.2, 0.6], [200, 150, 150], 200)
    attack = rows("PGD", [], repr(PGD(Linf(0.2, box=None))))
    assert verdicts(evaluation(attack, curves=[curve]), "a radius of 0.5 leaves chance") == {}
    assert len(verdicts(evaluation(curves=[curve]), "a radius of 0.5 leaves chance")) == 1


def test_of_several_curves_the_worst_case_speaks():
    one = Curve("FGSM", "Linf", [0.0, 0.5], [200, 200], 200)
    worst = Curve(WORST, "Linf", [0.0, 0.5], [200, 0], 200)
    found = evaluation(curves=[one, worst, Curve(WORST, "L2", [0.0, 0.5], [200, 200], 200)])
    assert told(found, "a radius of 0.5 leaves chance").figure.startswith("0.0 %")
    assert checklist.united(evaluation(curves=[one, one]), "Linf") is None
    assert checklist.united(evaluation(curves=[one]), "L2") is None


# --- distances -------------------------------------------------------------------------------------------------------


def test_an_attack_that_may_go_any_distance_turns_every_image():
    name = "an unbounded attack turns every image"
    whole, nearly, stuck = minimal("DDN", range(200)), minimal("FAB", range(199)), minimal("DeepFool", range(150))
    assert verdicts(evaluation(whole, nearly), name) == {"DDN": "trust", "FAB": "trust"}
    assert verdicts(evaluation(stuck), name) == {"DeepFool": "doubt"}
    # the model is not to blame where another attack of the kind gets through
    assert verdicts(evaluation(stuck, whole), name) == {"DeepFool": "note", "DDN": "trust"}
    # one ray may miss; a search of many steps that saw no gradient at the first may not
    ray, blind = minimal("FGSLine", range(100), backwards=1), minimal("DDN", [], backwards=1)
    assert verdicts(evaluation(ray), name) == {}
    object.__setattr__(blind, "attack", repr(DDN()))
    assert verdicts(evaluation(blind), name) == {"DDN": "doubt"}


def test_no_attack_should_go_further_than_to_an_image_of_another_class():
    notes = {"another_answer": {"images": 100, "L2": 9.0}}
    name = "nearer than an image of another class"
    near, far = minimal("DDN", range(200), 2.0), minimal("DDN", range(200), 9.5)
    assert verdicts(evaluation(near, notes=notes), name) == {"DDN": "trust"}
    assert verdicts(evaluation(far, notes=notes), name) == {"DDN": "doubt"}
    assert verdicts(evaluation(minimal("DDN", range(40)), notes=notes), name) == {"DDN": "doubt"}  # found for 40 of 100
    assert verdicts(evaluation(minimal("DDN", range(60)), notes=notes), name) == {"DDN": "trust"}
    assert (
        verdicts(evaluation(far), name) == verdicts(evaluation(minimal("FAB", [], norm="L1"), notes=notes), name) == {}
    )


def test_the_distance_to_another_answer_is_that_of_the_data():
    images, labels = load("digits").test.at(slice(0, 60))
    prediction = labels.clone()
    prediction[:7] = (labels[:7] + 1) % 10  # answered wrongly
    found = another_answer(images, labels, prediction)
    pixels, own, answer = images.flatten(1).double().numpy(), labels.numpy(), prediction.numpy()
    for norm, order in (("Linf", np.inf), ("L2", 2), ("L1", 1)):
        nearest = [
            min(np.linalg.norm(pixels[i] - pixels[j], order) for j in range(60) if answer[j] != answer[i])
            for i in range(60)
            if answer[i] == own[i]
        ]
        assert found[norm] == pytest.approx(sorted(nearest)[(len(nearest) - 1) // 2], rel=1e-5)
    assert found["images"] == 60
    assert another_answer(images, labels, torch.zeros_like(labels)) == {"images": 60}
    assert another_answer(images[:0], labels[:0], labels[:0]) == {"images": 0}


# --- the suite -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threat", [Linf(8 / 255), L2(0.5), L1(12)], ids=str)
def test_the_suite_has_an_attack_for_every_test(threat):
    suite = suites.named("checklist", threat)
    attacks = suite.attacks
    steps = {attack.steps for attack in attacks.values() if isinstance(attack, PGD) and attack.restarts == 1}
    restarts = {attack.restarts for attack in attacks.values() if isinstance(attack, PGD)}
    assert {100, 200} <= steps  # doubled
    assert {10, 20} <= restarts  # as the checklist has it
    assert attacks["noise"].draws >= 10_000
    assert attacks["noise"].threat == threat
    assert any(isinstance(attack, Square) for attack in attacks.values())
    assert any(isinstance(attack, DDN | FAB) for attack in attacks.values())
    assert set(suite.curve) <= set(attacks)
    assert not suite.cascade  # a cascade could not compare them
