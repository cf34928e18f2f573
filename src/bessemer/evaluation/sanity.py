"""Is it the question that was meant? Signs that images, labels or the model are not what the evaluation takes them for.

Measured on the images as they come, and kept as notes; `findings` says in words what they mean.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor

from bessemer.attacks import borrowed
from bessemer.attacks.attack import Model
from bessemer.records import Evaluation, Finding, Share

IMAGES = 200  # enough to tell a wrong normalisation from a right one
# what models of the field are commonly trained on: mean and deviation of each channel
NORMALISATIONS: dict[str, tuple[list[float], list[float]]] = {
    "pixels from -1 to 1": ([0.5], [0.5]),
    "grey levels from 0 to 255": ([0.0], [1 / 255]),
    "ImageNet's mean and deviation": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "CIFAR-10's mean and deviation": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    "MNIST's mean and deviation": ([0.1307], [0.3081]),
}


def preprocessing(model: Model, images: Tensor, labels: Tensor, seed: int) -> dict[str, Any]:
    """How many of the first images the model gets right as they are, and at best under a common normalisation."""
    images, labels = images[:IMAGES], labels[:IMAGES]
    right: dict[str, list[bool]] = {}
    with torch.no_grad(), borrowed(model, images.device, seed):
        right[""] = (model(images).argmax(1) == labels).tolist()
        # a model that is right about nearly all has nothing to gain, and is spared images outside [0, 1]
        tried = NORMALISATIONS if right[""].count(False) >= _least_gain(len(labels)) else {}
        for name, (mean, deviation) in tried.items():
            if images.dim() == 4 and len(mean) in (1, images.shape[1]):
                shift, scale = (torch.tensor(values).to(images).view(1, -1, 1, 1) for values in (mean, deviation))
                try:
                    right[name] = (model((images - shift) / scale).argmax(1) == labels).tolist()
                except Exception:  # a model may refuse what lies outside [0, 1], in any way
                    continue
    best = max(right, key=lambda name: sum(right[name]))
    gained = sum(so and not plain for so, plain in zip(right[best], right[""], strict=True))
    lost = sum(plain and not so for so, plain in zip(right[best], right[""], strict=True))
    commonest = int(labels.unique(return_counts=True)[1].max())
    return {
        "as": best,
        "right": sum(right[""]),
        "gained": gained,
        "lost": lost,
        "images": len(labels),
        "commonest": commonest,
    }


def _least_gain(images: int) -> float:
    """So many more images a normalisation has to get right before anybody is alarmed."""
    return max(5, 0.05 * images)


def digests(images: Tensor) -> list[int]:
    """A number per image that another image does not have."""
    return [
        int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=7).digest())
        for image in images.cpu().contiguous().numpy()
    ]


def findings(evaluation: Evaluation) -> list[Finding]:
    """What was looked for, found or not."""
    return [
        *_preprocessing(evaluation),
        _labels(evaluation),
        _duplicates(evaluation),
        _buffers(evaluation),
        *_classes(evaluation),
        *_radius(evaluation),
    ]


def _preprocessing(evaluation: Evaluation) -> list[Finding]:
    seen = evaluation.notes.get("preprocessing")
    # the answers of a random model may change for the better under anything that drowns its randomness
    if not seen or not seen["images"] or evaluation.notes.get("predictions_that_change"):
        return []
    from scipy.stats import binomtest  # noqa: PLC0415  (half a second that nobody else needs to wait)

    gained, lost, count = seen["gained"], seen["lost"], seen["images"]
    after, guessing = seen["right"] + gained - lost, seen["commonest"] / count
    missing = (
        gained - lost >= _least_gain(count)
        and bool(binomtest(gained, gained + lost, alternative="greater").pvalue < 0.001)
        # whoever answers always the same gains too where it was always wrong
        and bool(binomtest(after, count, guessing, alternative="greater").pvalue < 0.001)
    )
    return [
        Finding(
            name="preprocessing fits",
            verdict="doubt" if missing else "trust",
            figure=f"{Share(seen['right'], count)} of the first {count} images are right as they are"
            + (f", {Share(after, count)} after {seen['as']}" if missing else ""),
            meaning="The model was trained on normalised images but gets raw pixels in [0, 1]: every figure is about "
            "another model than the one that would be used."
            if missing
            else "No common normalisation makes the model better, so it gets its images as it wants them.",
            advice="Put the normalisation into the model: nn.Sequential(bessemer.models.Normalize(mean, std), model)."
            if missing
            else "",
        )
    ]


def _labels(evaluation: Evaluation) -> Finding:
    from scipy.stats import binomtest  # noqa: PLC0415

    right, count = int(evaluation.right.sum()), len(evaluation)
    chance = 1 / max(2, len(evaluation.classes))
    below = bool(binomtest(right, count, chance, alternative="less").pvalue < 0.01)
    above = bool(binomtest(right, count, chance, alternative="greater").pvalue < 0.01)
    verdict = "doubt" if below else "trust" if above else "note"
    meaning = "The model does better than guessing, so its classes are those of the labels."
    if below:
        meaning = "Worse than guessing: the classes of the model and of the labels are likely in another order."
    elif not above and chance**count >= 0.01:
        meaning = "Too few images to tell: guessing might have got them all right."
    elif not above:
        meaning = "No better than guessing: there is nothing here for an attack to take away."
    return Finding(
        name="labels fit",
        verdict=verdict,
        figure=f"{Share(right, count)} of unattacked images are right, guessing gets {100 * chance:.1f} %",
        meaning=meaning,
        advice="" if above else "Look at a few images with their labels and predictions before anything else.",
    )


def _duplicates(evaluation: Evaluation) -> Finding:
    copies = int(evaluation.notes.get("duplicates", 0))
    return Finding(
        name="images are distinct",
        verdict="note" if copies else "trust",
        figure=f"{copies} of {len(evaluation)} images are copies of another one",
        meaning="Copies count several times: the figures lean towards them, and the intervals are too narrow."
        if copies
        else "No image counts twice.",
        advice="Evaluate on distinct images." if copies else "",
    )


def _buffers(evaluation: Evaluation) -> Finding:
    changing = bool(evaluation.notes.get("buffers_change"))
    return Finding(
        name="evaluation mode is at rest",
        verdict="note" if changing else "trust",
        figure="the model writes into its buffers in evaluation mode" if changing else "no buffer changes in a call",
        meaning="What the model answers may depend on what it was asked before; it is given back as it was."
        if changing
        else "An answer does not depend on the questions before it.",
        advice="Look for statistics that are still updated in evaluation mode." if changing else "",
    )


def _classes(evaluation: Evaluation) -> list[Finding]:
    """Whether so few classes come by no chance: data that lie class by class, of which only the first were judged."""
    count, classes = len(evaluation), len(evaluation.classes)
    seen = len(set(evaluation.label.tolist()))
    # the chance that draws from all classes alike meet no more than so many
    ways = math.lgamma(classes + 1) - math.lgamma(seen + 1) - math.lgamma(classes - seen + 1)
    if ways + count * math.log(seen / classes) >= math.log(0.001):
        return []
    return [
        Finding(
            name="every class is asked about",
            verdict="note",
            figure=f"the {count:,} images are of {seen} of {classes} classes",
            meaning="The figures say nothing about the other classes: the images may lie class by class, and only the "
            "first have been judged.",
            advice="Evaluate all images, or mix them before you take the first.",
        )
    ]


def _radius(evaluation: Evaluation) -> list[Finding]:
    if evaluation.threat.partition(":")[2] not in ("0", "0.0"):
        return []
    return [
        Finding(
            name="there is a radius",
            verdict="note",
            figure=f"the threat is {evaluation.threat}",
            meaning="Nobody may change anything, so robust accuracy is clean accuracy.",
            advice="Give a radius above 0, such as Linf:8/255.",
        )
    ]
