"""Other libraries' attacks among Bessemer's, and other libraries' models before its judge.

    from bessemer import adapters

    theirs = adapters.attack(torchattacks.PGD(any_model, eps=8/255, steps=10), bs.Linf(8 / 255))
    theirs = adapters.attack(foolbox.attacks.L2DeepFoolAttack(), "L2")  # a norm: the nearest image it finds
    bs.evaluate(adapters.model(foolbox_model), data, suite=Suite("both", {"theirs": theirs, "ours": ours}))

The other libraries are not needed, and not imported, until one of their objects comes in.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from bessemer.adapters import art, autoattack, foolbox, torchattacks
from bessemer.adapters.adapted import Adapted, AdaptedBounded, AdaptedMinimal, Foreign, Judged, is_from
from bessemer.attacks import Attack
from bessemer.attacks.attack import Model
from bessemer.errors import ModelError, UsageError
from bessemer.threat import Threat

__all__ = ["Adapted", "AdaptedBounded", "AdaptedMinimal", "Foreign", "Judged", "attack", "model"]


def attack(foreign: Any, threat: Threat | str) -> Attack:
    """Another library's attack, as one of Bessemer's.

    foreign: an attack object of torchattacks, Foolbox, ART (evasion) or AutoAttack. It attacks whatever model Bessemer
    judges, not the one it was built on, and is itself left as it is. threat: the ball it searches, in [0, 1] pixels,
    which must be the one it was built for (Foolbox takes it at each call); or the norm (`Linf`, `L2`, `L1`) in which it
    looks for the nearest misclassified image.

    What it returns is not corrected: an image outside the threat is refused by the judge (`ThreatError`). See `Adapted`
    for how passes are counted and random numbers seeded. Raises `UsageError` for what is no such object or does not
    fit the threat.
    """
    found = _foreign(foreign)
    return AdaptedBounded(found, threat) if isinstance(threat, Threat) else AdaptedMinimal(found, threat)


def _foreign(thing: Any) -> Foreign:
    if isinstance(thing, type):
        raise UsageError(f"{thing.__name__} is a class; build the attack first and give the object")
    if is_from(thing, "torchattacks") and hasattr(thing, "set_model"):
        return torchattacks.Torchattacks(thing)
    if is_from(thing, "foolbox") and hasattr(thing, "repeat"):
        return foolbox.Foolbox(thing)
    if is_from(thing, "art") and hasattr(thing, "generate"):
        return art.Art(thing)
    if hasattr(thing, "run_standard_evaluation"):
        return autoattack.AutoAttack(thing)
    raise UsageError(
        f"{type(thing).__name__} is no attack of torchattacks, Foolbox, ART or AutoAttack; Bessemer's own attacks need "
        "no adapter, and one of your own derives from bessemer.attacks.Attack"
    )


def model(foreign: Any) -> Model:
    """Another library's model, as a callable from images in [0, 1] to logits.

    foreign: a Foolbox model around a torch network, an ART classifier, or a torchattacks attack (whose model it is,
    after the normalisation set on the attack); bounds and preprocessing are taken along. An `nn.Module` (RobustBench's,
    for example) and any other callable come back as they are. Gradients flow where torch computes.

    Raises `ModelError` where there is no torch network inside, or nothing to call.
    """
    if isinstance(foreign, nn.Module):
        return foreign
    if is_from(foreign, "torchattacks"):
        return torchattacks.model(foreign)
    if is_from(foreign, "foolbox"):
        return foolbox.model(foreign)
    if is_from(foreign, "art"):
        return art.model(foreign)
    if not callable(foreign):
        raise ModelError(f"{type(foreign).__name__} is no model: it cannot be called with images")
    return foreign
