"""Which attacks may be compared, when one is better than another, and what is read from the call that makes one."""

from math import comb

import numpy as np
import pytest
from torch import nn
from written import IMAGES, evaluation, rows

from bessemer.attacks import BPDA, EOT, FAB, FGSM, PGD, EightBit, GradientAttack, Transfer, Within, parts
from bessemer.evaluation.paired import Call, climbs, comparable, exceeds, families, gain, steps
from bessemer.threat import Linf

THREAT = Linf(8 / 255)


def called(attack, **facts):
    return rows(repr(attack), [], repr(attack), **facts)


@pytest.mark.parametrize("both", [0, 40])
@pytest.mark.parametrize("only_one", range(0, 25, 2))
@pytest.mark.parametrize("only_other", range(0, 25, 4))
def test_better_is_a_point_more_and_a_fair_coin_would_seldom_say_so(only_one, only_other, both):
    one = rows("one", range(both + only_one))
    other = rows("other", [*range(both), *range(both + only_one, both + only_one + only_other)])
    count = only_one + only_other
    chance = sum(comb(count, heads) for heads in range(only_one, count + 1)) / 2**count
    difference = (only_one - only_other) / IMAGES
    expected = difference if difference >= 0.01 and chance < 0.01 else 0
    assert gain(evaluation(one, other), one, other) == pytest.approx(expected)


def test_what_is_more_than_a_share_is_by_the_exact_binomial():
    for count in range(12):
        tail = sum(comb(200, k) * 0.01**k * 0.99 ** (200 - k) for k in range(count, 201))
        assert exceeds(count, 200, 0.01) == (tail < 0.01), count


def test_images_that_were_wrong_already_decide_nothing():
    prediction = np.zeros(IMAGES, np.int64)
    prediction[:50] = 1
    one, other = rows("one", range(50)), rows("other", [])
    found = evaluation(one, other, prediction=prediction)
    assert gain(found, one, other) == 0
    other["prediction"][:50] = -1  # nobody attacked them, and they were not right either
    assert comparable(found) == [one, other]


def test_in_a_cascade_only_the_first_attack_met_every_image():
    first = rows("first", range(80))
    second = rows("second", range(80, 110), skipped=range(80))
    # without its own rule, what the second did not meet would count as turned by it
    assert gain(evaluation(first, second), second, first) == pytest.approx(30 / IMAGES)
    assert comparable(evaluation(first, second)) == [first]
    # where the first turned nothing, the second met all of them too
    assert len(comparable(evaluation(rows("nothing", []), rows("second", range(30))))) == 2


def test_a_call_is_read_through_its_wrappers():
    inner = PGD(THREAT, steps=20, loss="margin")
    call = Call.of(called(EOT(EightBit(inner), samples=7)))
    assert call.names == ("EOT", "EightBit", "PGD")
    assert (call.get("samples"), call.get("steps"), call.get("loss"), call.get("absent", "no")) == (
        "7", "20", "'margin'", "no",
    )  # fmt: skip
    assert call.unwrapped("EOT") == Call.of(called(EightBit(inner)))
    assert call.unwrapped("EOT") != Call.of(called(EightBit(PGD(THREAT, steps=10, loss="margin"))))
    net = nn.Flatten()
    for wrapped in (BPDA(inner, net, net), BPDA(inner, lambda x: x, net)):
        assert Call.of(called(wrapped)).unwrapped("BPDA") == Call.of(called(inner))


def test_an_attack_that_cannot_be_read_has_a_name_and_no_settings():
    custom = called(PGD(THREAT, loss=lambda goal, logits: logits.logsumexp(1)))
    assert Call.of(custom) == Call(("PGD",), ({},))
    assert Call.of(rows("own", [], "MyAttack")) == Call(("MyAttack",), ({},))
    assert families([custom, custom], "steps") == []


def test_a_family_differs_in_one_setting_alone():
    few, many = called(PGD(THREAT, steps=10)), called(PGD(THREAT, steps=20))
    margin, others = called(PGD(THREAT, steps=20, loss="margin")), called(PGD(Linf(0.3), steps=40, restarts=2))
    attacks = [few, margin, many, others, called(FGSM(THREAT))]
    assert families(attacks, "steps") == [{"10": few, "20": many}]
    assert [set(family) for family in families(attacks, "loss")] == [{"'margin'", "'cross-entropy'"}]
    assert families(attacks, "threat") == families(attacks, "restarts") == []
    grey = [called(EightBit(PGD(THREAT, steps=count))) for count in (10, 20)]
    assert [list(family) for family in families([few, *grey], "steps")] == [["10", "20"]]


def test_what_climbs_follows_the_models_own_gradient_many_times():
    assert climbs(called(PGD(THREAT)))
    assert climbs(called(EightBit(PGD(THREAT))))
    assert not climbs(called(FGSM(THREAT), backwards=1))
    assert not climbs(called(EOT(FGSM(THREAT), samples=10), backwards=10))
    assert not climbs(called(Transfer(PGD(THREAT), nn.Flatten())))
    assert not climbs(called(Within(THREAT, FAB("Linf"))))
    assert not climbs(called(GradientAttack(THREAT, aim=parts.RandomClass())))
    assert climbs(called(GradientAttack(THREAT)))
    assert not climbs(called(FAB("Linf"), kind="minimal"))
    assert not climbs(called("Square()", backwards=0))
    assert steps(called(EOT(PGD(THREAT, steps=20), samples=10), backwards=200)) == 20
