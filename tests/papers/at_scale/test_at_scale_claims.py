"""The at-scale claims on networks made up to bear them out, to refute them, and to leave them open."""

import pytest
from planted import network

from bessemer.papers.at_scale import adv_prop, denoising, depth, mixture, pairing, ratio
from bessemer.papers.at_scale.networks import SCALES

CPU = SCALES["cpu"]
PURE = {10: 52, 30: 46, 100: 42, 500: 40, 2000: 39}
MIXED = {10: 56, 30: 47, 100: 36, 500: 27, 2000: 21}
PAIRED = {10: 49, 30: 42, 100: 34, 500: 27, 2000: 24}
BRANCH = {10: 51, 30: 45, 100: 41, 500: 39, 2000: 39}
PAIRED_BRANCH = {10: 48, 30: 42, 100: 38, 500: 36, 2000: 34}
FALLEN = {10: 1, 2000: 0}
HIGH, LOW = {10: 60, 2000: 50}, {10: 10, 2000: 5}


def flat(share):
    return {10: share, 2000: share}


PUBLISHED = {
    ratio: {
        "share-0": network(62, PURE),
        "share-20": network(63, {10: 53, 2000: 32}),
        "share-60": network(65, {10: 54, 2000: 15}),
        "share-100": network(66, MIXED),
    },
    mixture: {
        "clean": network(79, FALLEN),
        "share-0": network(62, PURE),
        "share-100": network(66, MIXED),
        "mixture": network(62, BRANCH),
        "mixture/clean": network(79.4, FALLEN),
        "mixture-statistics": network(62, flat(25)),
        "mixture-affine": network(62, flat(36)),
        "group-0": network(60, flat(36)),
        "group-100": network(64, flat(33)),
    },
    pairing: {
        "share-0": network(62, PURE),
        "share-100": network(66, MIXED),
        "pairing": network(65, PAIRED),
        "mixture": network(62, BRANCH),
        "mixture/clean": network(79.4, FALLEN),
        "pairing-mixture": network(60, PAIRED_BRANCH),
        "pairing-mixture/clean": network(77, FALLEN),
    },
    depth: {
        "depth-8": network(55, flat(42)),
        "depth-26": network(60, flat(48)),
        "depth-8-usual": network(55, flat(39)),
        "depth-8-clean": network(79, FALLEN),
        "depth-26-clean": network(81, FALLEN),
    },
    denoising: {
        "share-0": network(62, flat(39)),
        "denoise-gaussian": network(65, flat(45)),
        "denoise-dot-product": network(64, flat(43)),
        "denoise-bilateral": network(63, flat(42)),
        "denoise-mean": network(63, flat(41.4)),
        "denoise-median": network(63, flat(41)),
    },
    adv_prop: {
        "clean": network(76, noise=40),
        "advprop": network(79, noise=60),
        "advprop-weak": network(79, noise=50),
        "advprop-single": network(70, noise=60),
    },
}
REFUTING = {
    ratio: {
        "share-0": network(66, MIXED),
        "share-20": network(66, HIGH),
        "share-60": network(66, HIGH),
        "share-100": network(62, PURE),
    },
    mixture: {
        "clean": network(79, FALLEN),
        "share-0": network(62, HIGH),
        "share-100": network(62, HIGH),
        "mixture": network(62, LOW),
        "mixture/clean": network(60, HIGH),
        "mixture-statistics": network(62, flat(36)),
        "mixture-affine": network(62, flat(25)),
        "group-0": network(62, flat(50)),
        "group-100": network(62, flat(20)),
    },
    pairing: {
        "share-0": network(62, {10: 60, 2000: 10}),
        "share-100": network(66, flat(40)),
        "pairing": network(65, {10: 50, 2000: 30}),
        "mixture": network(62, LOW),
        "mixture/clean": network(70, FALLEN),
        "pairing-mixture": network(60, HIGH),
        "pairing-mixture/clean": network(80, FALLEN),
    },
    depth: {
        "depth-8": network(55, flat(42)),
        "depth-26": network(60, flat(38)),
        "depth-8-usual": network(55, flat(48)),
        "depth-8-clean": network(79, FALLEN),
        "depth-26-clean": network(75, FALLEN),
    },
    denoising: {name: network(70, flat(39)) for name in PUBLISHED[denoising]},
    adv_prop: {
        "clean": network(76, noise=60),
        "advprop": network(70, noise=40),
        "advprop-weak": network(70, noise=40),
        "advprop-single": network(80, noise=40),
    },
}
MODULES = pytest.mark.parametrize("module", PUBLISHED, ids=lambda module: module.NAME)


def judged(module, networks, seeds=1):
    return module.claims({name: [one] * seeds for name, one in networks.items()}, CPU)


@MODULES
def test_what_the_paper_found_bears_its_claims_out(module):
    # planted networks fail on the same images, so every difference is beyond chance
    claims = judged(module, PUBLISHED[module], seeds=2)
    assert {claim.text: claim.holds for claim in claims} == {claim.text: True for claim in claims}
    assert len({claim.text for claim in claims}) == len(claims) >= 4


@MODULES
def test_the_opposite_refutes_every_one(module):
    claims = judged(module, REFUTING[module])
    assert {claim.text: claim.holds for claim in claims} == {claim.text: False for claim in claims}


@MODULES
def test_networks_that_are_all_alike_decide_nothing(module):
    alike = {name: network(70, noise=70, curve={10: 45, 2000: 40}) for name in PUBLISHED[module]}
    for claim in judged(module, alike):
        assert claim.holds is ("at most three points below" in claim.text)
        assert claim.holds or "cannot be told from 0" in claim.value or "almost no robustness" in claim.text


def test_a_ranking_reverses_only_where_both_ends_are_beyond_chance():
    def reverses(pure, mixed):
        found = {"share-0": network(62, pure), "share-100": network(62, mixed)}
        return next(claim.holds for claim in judged(ratio, found) if "ranking reverses" in claim.text)

    assert reverses(PURE, MIXED)
    assert not reverses(PURE, {**MIXED, 10: 52})
    assert not reverses({**PURE, 2000: 21}, MIXED)


def test_networks_of_a_smaller_scale_leave_out_what_was_not_asked():
    few = {name: PUBLISHED[mixture][name] for name in mixture.WANTED["smoke"]}
    assert len(judged(mixture, few)) == len(judged(mixture, PUBLISHED[mixture])) - 2
    ends = {name: PUBLISHED[ratio][name] for name in ratio.WANTED["smoke"]}
    assert len(judged(ratio, ends)) == len(judged(ratio, PUBLISHED[ratio])) - 2
    local = {name: PUBLISHED[denoising][name] for name in denoising.WANTED["smoke"]}
    assert len(judged(denoising, local)) == 3


def test_an_attack_must_search_through_the_branch_that_predicts():
    own, other = network(60, flat(30)).standing(50), network(60, flat(55)).standing(50)
    found = {
        ("adversarial", "adversarial"): [own],
        ("adversarial", "clean"): [other],
        ("clean", "clean"): [other],
        ("clean", "adversarial"): [own],
    }
    adversarial, clean = mixture.transfer_claims(found, 50)
    assert adversarial.holds
    assert not clean.holds


@MODULES
def test_every_picture_is_drawn(module, tmp_path):
    networks = {name: [one] * 2 for name, one in PUBLISHED[module].items()}
    if module is depth:  # the whole series
        networks |= {
            f"depth-{layers}{kind}": networks[f"depth-8{kind}"] for layers in (14, 20) for kind in ("", "-clean")
        }
    module.picture(networks, CPU, tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")
