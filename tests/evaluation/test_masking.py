"""Signs of masked gradients: what raises each of them, and what must not. Whole sets are in `test_planted_faults`."""

import pytest
import torch
from torch import nn
from written import evaluation, rows

from bessemer.attacks import BPDA, EOT, FGSM, PGD, HotCold, Transfer
from bessemer.data import load
from bessemer.evaluation import Suite, evaluate, findings
from bessemer.records import WORST, Curve
from bessemer.threat import Linf

THREAT = Linf(0.1)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def network(digits, width, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    images, labels = digits.train.at(slice(None))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def plain(digits):
    return network(digits, 64)


class Wrapped(nn.Module):
    def __init__(self, model, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x):
        return self.after(self.model(self.before(x)))


def staircase(x):
    return (x * 8).round() / 8


def judged(model, digits, suite="quick", samples=200):
    return evaluate(model, digits.test.at(slice(0, samples)), suite, THREAT)


def doubts(found):
    return {finding.name for finding in found.findings if finding.verdict == "doubt"}


def verdicts(found, name):
    return {finding.attack: finding.verdict for finding in findings(found) if finding.name == name}


# --- gradients that hide ---------------------------------------------------------------------------------------------


def test_logits_times_a_thousand_underflow(plain, digits):
    model = Wrapped(plain, after=lambda z: z * 1000)
    assert doubts(judged(model, digits)) == {"zero gradients", "the margin loss beats cross-entropy"}
    assert doubts(judged(model, digits, "bang")) == {
        "zero gradients", "the margin loss beats cross-entropy", "logits beat the loss",
        "nearer than an image of another class",
    }  # fmt: skip
    assert doubts(judged(plain, digits, "bang")) == set()


def test_float64_tells_underflow_from_a_network_without_gradients(plain, digits):
    loud = judged(Wrapped(plain, after=lambda z: z * 20), digits)
    assert loud.zero_gradient_share("FGSM").value > 0.05
    assert loud.zero_in_float64_share("FGSM").value == 0
    flat = judged(Wrapped(plain, before=staircase), digits)
    assert flat.zero_gradient_share("FGSM").value == flat.zero_in_float64_share("FGSM").value == 1


def test_a_model_that_insists_on_float32_is_judged_all_the_same(plain, digits):
    def insisting(x):
        assert x.dtype == torch.float32, "float32 please"
        return x

    found = judged(Wrapped(plain, before=insisting, after=lambda z: z * 1000), digits)
    text = next(finding.figure for finding in found.findings if finding.name == "zero gradients")
    assert "float64 could not be asked" in text


def test_float64_is_not_spoken_of_where_it_was_not_asked(plain, digits):
    found = judged(lambda x: plain(x) * 1000, digits, samples=100)
    text = next(finding.figure for finding in found.findings if finding.name == "zero gradients")
    assert "float64 could not be asked" in text


def test_any_loss_that_cannot_underflow_is_a_twin_whatever_the_attacks_are_called(plain, digits):
    attacks = {"mine": PGD(THREAT, steps=5), "other": PGD(THREAT, steps=5, loss="dlr"), "short": PGD(THREAT, steps=3)}
    found = judged(Wrapped(plain, after=lambda z: z * 1000), digits, Suite("own", attacks))
    assert verdicts(found, "the DLR loss beats cross-entropy") == {"mine": "doubt"}
    assert verdicts(found, "the margin loss beats cross-entropy") == {}


# --- what should be weaker -------------------------------------------------------------------------------------------


def test_a_random_model_is_noticed(plain, digits):
    model = Wrapped(plain, before=lambda x: nn.functional.dropout(x, 0.3, training=True))
    assert doubts(judged(model, digits)) == {"predictions repeat"}


def test_averaging_over_a_random_models_draws_beats_a_single_gradient(plain, digits):
    direct = PGD(THREAT, steps=10)
    suite = Suite("own", {"direct": direct, "averaged": EOT(direct, samples=10), "other": PGD(THREAT, steps=5)})
    model = Wrapped(plain, before=lambda x: nn.functional.dropout(x, 0.3, training=True))
    assert verdicts(judged(model, digits, suite), "averaging beats a single gradient") == {"direct": "doubt"}
    # a model that draws nothing has nothing to average
    assert verdicts(judged(plain, digits, suite), "averaging beats a single gradient") == {"": "trust"}


def test_a_stand_in_gradient_and_a_transferred_attack_get_past_a_staircase(plain, digits):
    direct, stranger = PGD(THREAT, steps=10), network(digits, 48, seed=3)
    attacks = {"direct": direct, "BPDA": BPDA(direct, staircase, plain), "transfer": Transfer(direct, stranger)}
    masked = judged(Wrapped(plain, before=staircase), digits, Suite("own", attacks))
    stand_in, transfer = "a stand-in gradient beats the model's own", "transfer beats the attack"
    assert verdicts(masked, stand_in) == {"direct": "doubt"}
    # the stand-in is followed many times too, and no stranger's image beats it: it is the one to quote
    assert verdicts(masked, transfer) == {"direct": "note"}
    assert "BPDA is not beaten" in next(f.advice for f in masked.findings if f.name == transfer)
    alone = judged(Wrapped(plain, before=staircase), digits, Suite("own", {"direct": direct, "t": attacks["transfer"]}))
    assert verdicts(alone, transfer) == {"direct": "doubt"}
    # the surrogate's gradients are not the model's
    assert verdicts(alone, "zero gradients") == {"direct": "doubt"}
    sound = judged(plain, digits, Suite("own", {**attacks, "BPDA": BPDA(direct, nn.Identity(), plain)}))
    assert doubts(sound) == set()
    assert verdicts(sound, stand_in) == verdicts(sound, transfer) == {"": "trust"}


def many(turned, name="PGD", **facts):
    return rows(name, turned, repr(PGD(THREAT, steps=20)), **facts)


@pytest.mark.parametrize(
    ("sign", "weaker"),
    [
        ("one step beats many", {"attack": repr(FGSM(THREAT)), "backwards": 1}),
        ("noise beats the attack", {"attack": "noise()", "kind": "random", "backwards": 0}),
        ("a search without gradients beats the attack", {"attack": "Square()", "backwards": 0}),
        ("transfer beats the attack", {"attack": "Transfer(PGD(), model=Sequential)"}),
    ],
)
def test_what_should_be_weaker_is_told_by_what_it_does(sign, weaker):
    ours = many(range(50))
    assert verdicts(evaluation(ours, rows("w", range(56), **weaker)), sign) == {
        "": "trust"
    }  # 6 against 0 may be chance
    assert verdicts(evaluation(ours, rows("w", range(57), **weaker)), sign) == {"PGD": "doubt"}
    another_ball = rows("w", range(200), **weaker)
    object.__setattr__(another_ball, "threat", "Linf:0.3")
    assert verdicts(evaluation(ours, another_ball), sign) == {}
    # whoever climbs elsewhere on purpose is not led astray
    targeted = rows("t", [], f"GradientAttack(threat={THREAT!r}, steps=20, aim=RandomClass())")
    assert verdicts(evaluation(targeted, rows("w", range(57), **weaker)), sign) == {}


def test_a_strong_search_may_beat_one_run_but_not_the_best_of_many():
    square = rows("Square", range(80), "Square()", backwards=0)
    once, best = many(range(50)), rows("best", range(85), repr(PGD(THREAT, steps=20, restarts=10)))
    name = "a search without gradients beats the attack"
    assert verdicts(evaluation(once, square), name) == {"PGD": "doubt"}
    assert verdicts(evaluation(once, best, square), name) == {"PGD": "note"}
    # noise is no strong search: it should beat nothing
    noise = rows("noise", range(80), "noise()", "random", backwards=0)
    assert verdicts(evaluation(once, best, noise), "noise beats the attack") == {"PGD": "doubt"}


# --- cascades --------------------------------------------------------------------------------------------------------


def test_a_cascade_raises_nothing_by_itself(plain, digits):
    """Each attack meets what the ones before it left, and always seems to turn more than they did."""
    attacks = {
        "short": PGD(THREAT, steps=5),
        "short, margin": PGD(THREAT, steps=5, loss="margin"),
        "longer": PGD(THREAT, steps=10),
        "restarts": PGD(THREAT, steps=10, restarts=10),
        "FGSM": FGSM(THREAT),
        "HC1": HotCold(),
    }
    found = judged(plain, digits, Suite("own", attacks, cascade=True))
    assert doubts(found) == set()
    compared = {"one step beats many", "the margin loss beats cross-entropy", "steps have converged"}
    assert compared & {finding.name for finding in found.findings} == set()
    apart = judged(plain, digits, Suite("own", attacks))
    assert compared <= {finding.name for finding in apart.findings}


def test_in_a_cascade_a_search_without_gradients_adds_little():
    first = many(range(100))

    def square(added, skipped=range(100)):
        return rows("Square", range(100, 100 + added), "Square()", backwards=0, skipped=skipped)

    name = "a search without gradients adds little"
    assert verdicts(evaluation(first, square(3)), name) == {"": "trust"}
    assert verdicts(evaluation(first, square(20)), name) == {"": "doubt"}
    one_step = rows("FGSM", range(100), repr(FGSM(THREAT)), backwards=1)
    assert verdicts(evaluation(one_step, square(20)), name) == {}  # it comes after no attack of many steps
    assert verdicts(evaluation(first, square(20, skipped=())), name) == {}  # and where it met all, it is compared


# --- the radius ------------------------------------------------------------------------------------------------------


def test_more_room_helps_unless_the_attack_is_blind():
    def at(robust, name=WORST):
        found = evaluation(curves=[Curve(name, "Linf", [0.0, 0.1, 0.2], robust, 200)])
        return verdicts(found, "a larger radius helps")

    assert at([200, 150, 100]) == {"": "trust"}
    assert at([200, 150, 149]) == {"": "doubt"}
    assert at([200, 150, 149], "PGD") == {"PGD": "doubt"}
    assert at([200, 4, 4]) == {"": "trust"}  # next to nothing is left
    assert at([200, 199, 199]) == {"": "note"}  # nothing falls at all: the radius may be tiny
    other = Curve("DDN", "L2", [0.0, 0.1, 0.2], [200, 150, 150], 200)
    assert verdicts(evaluation(curves=[other]), "a larger radius helps") == {}


def test_a_network_that_is_right_about_grey_for_one_class_is_not_doubted(digits):
    """With two classes, half of the images survive any attack when grey is answered with one of them."""
    torch.manual_seed(0)
    images, labels = digits.test.at(slice(0, 200))
    labels = (labels >= 5).long()

    class Grey(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return torch.stack([self.one * 0 + 1 + 0 * x.mean((1, 2, 3)), x.mean((1, 2, 3))], 1)

    found = evaluate(Grey(), (images, labels), "quick", Linf(0.1))
    finding = next(finding for finding in found.findings if finding.name == "a radius of 0.5 leaves chance")
    assert finding.verdict == "trust"


# --- how it is told --------------------------------------------------------------------------------------------------


def test_where_nothing_is_left_more_steps_are_not_advised(plain, digits):
    found = evaluate(plain, digits.test.at(slice(0, 100)), "quick", Linf(0.8))
    assert found.worst_case().count == 0
    assert all(f.verdict == "trust" for f in found.findings if f.name == "still climbing at the end")


def test_what_several_attacks_passed_is_said_once_and_every_doubt_by_itself():
    sound = [many([], name) for name in "ABC"]
    (told,) = (finding for finding in findings(evaluation(*sound)) if finding.name == "zero gradients")
    assert told.attack == ""
    assert told.figure.startswith("A: ")
    assert told.figure.endswith("B, C")
    blind = [many([], name, zero=range(50)) for name in "DE"]
    assert verdicts(evaluation(*sound, *blind), "zero gradients") == {"": "trust", "D": "doubt", "E": "doubt"}
    ranks = [finding.verdict for finding in findings(evaluation(*sound, *blind))]
    assert ranks == sorted(ranks, key=["doubt", "note", "trust"].index)


def test_every_doubt_and_note_says_what_to_try_next(plain, digits):
    found = judged(Wrapped(plain, before=staircase), digits)
    told = [finding for finding in found.findings if finding.verdict != "trust"]
    assert len(told) > 4
    assert all(finding.advice.endswith(".") and finding.meaning.endswith(".") for finding in told)
