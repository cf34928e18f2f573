"""The recipes of ImageNet's size: their arithmetic, what decays, and that each of them trains, on a small scale."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bessemer import models
from bessemer.attacks import GradientAttack, parts
from bessemer.errors import UsageError
from bessemer.threat import Linf
from bessemer.training import Recipe, load, recipes, train
from bessemer.training.optimizers import parameter_groups
from bessemer.training.stalling import stalling_of

NAMES = [name for name in recipes() if name.startswith("imagenet-")]
ROBUST = [name for name in NAMES if "adv-prop" not in name]
IMAGES = 1_281_167 - 1000 * 10  # of the training set, less what validates
SMALL = ["model.depth=[1, 1, 1, 1]", "model.width=4", "model.size=32", "model.classes=3", "data.size=32",
         "data.resize=36", "data.workers=0", "training.batch_size=6", "training.iterations=3", "training.log_every=1",
         "training.validate_every=3", "training.precision=float32"]  # fmt: skip


def attack_of(method):
    return method.attack if hasattr(method, "attack") else attack_of(method.inside)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes of a few JPEG files each."""
    home, random = tmp_path_factory.mktemp("data") / "imagenet", np.random.default_rng(0)
    for part, count in (("train", 11), ("val", 2)):
        for label in range(3):
            (home / part / f"n{label}").mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (40, 48, 3), np.uint8)
                Image.fromarray(pixels).save(home / part / f"n{label}" / f"{number}.JPEG")
    return home


@pytest.mark.parametrize("name", NAMES)
def test_epochs_are_counted_in_images_of_the_training_set_that_do_not_validate(name):
    recipe = Recipe.named(name)
    size = recipe.training.batch_size
    epochs = {256: (30, 60, 90, 100, 105), 4096: (35, 70, 95, 110)}[size]
    places = [*recipe.schedule.at, recipe.training.iterations]
    assert places == [round(epoch * IMAGES / size) for epoch in epochs]
    assert recipe.schedule.warmup == round(5 * IMAGES / size)
    assert recipe.tables["data"]["held_out"] == 10


@pytest.mark.parametrize("name", ROBUST)
def test_the_rate_and_the_attack_are_those_of_the_published_code(name):
    recipe = Recipe.named(name)
    rate = [recipe.optimizer.lr * recipe.schedule(place, 34138) for place in (0, 776, 1552, 10861, 10862, 34137)]
    assert rate == pytest.approx([0.1, 0.85, 1.6, 1.6, 0.16, 0.0016])
    assert recipe.training.batch_size / 128 == 32
    assert attack_of(recipe.method) == GradientAttack(
        Linf(16 / 255),
        30,
        aim=parts.RandomClass(),
        start=parts.SometimesNatural(0.2),
        step_size=parts.AtLeast(1 / 255),
        last=True,
    )
    inner = recipe.method
    while hasattr(inner, "inside"):
        inner = inner.inside
    assert inner.label_smoothing == 0.1


@pytest.mark.parametrize("name", NAMES)
def test_weights_decay_and_norms_and_biases_do_not(name):
    recipe = Recipe.named(name)
    with torch.device("meta"):
        model = recipe.norm.installed(models.build(*recipe.model[:1], **recipe.model[1]))
    decaying = {
        id(parameter)
        for group in parameter_groups(model, recipe.optimizer.factors)
        for parameter in group["params"]
        if group["decay_factor"]
    }
    weights = {id(part.weight) for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear)}
    everything = {id(parameter) for parameter in model.parameters()}
    assert decaying == (weights if name in ROBUST else everything)


def test_validation_and_notes_ask_about_no_more_images_at_once_than_a_training_pass(photos, tmp_path, monkeypatch):
    """At 4,096 images a step, of which a process holds 32, a batch of its own size would not fit into any memory."""
    asked = []

    plain = models.BottleneckResNet.forward

    def told(self, images):
        if torch.is_grad_enabled():  # without a gradient nothing is kept
            asked.append(len(images))
        return plain(self, images)

    monkeypatch.setattr(models.BottleneckResNet, "forward", told)
    changes = [*SMALL, f"data.path={photos}", "training.accumulation=3", "training.iterations=1"]
    recipe = Recipe.named("imagenet-adversarial-resnet152", changes)
    train(recipe, tmp_path / "run", note=stalling_of(recipe))
    assert max(asked) == 2


def test_a_run_goes_on_in_other_parts_as_it_does_with_other_processes(photos, tmp_path):
    """Where a GPU holds 32 images, 8 processes need 16 parts for what 128 do in one.

    Group norm tells no parts apart; without an attack no sign hangs on how a sum was rounded.
    """
    changes = [*SMALL, f"data.path={photos}", "norm={name='group', groups=2}", "method={name='plain'}"]
    whole, parts = (Recipe.named(NAMES[1], [*changes, f"training.accumulation={count}"]) for count in (1, 3))
    assert whole.norm == parts.norm
    straight = train(whole, tmp_path / "straight")
    train(whole, tmp_path / "run", stop=lambda: True)
    gone_on = train(parts, tmp_path / "run", resume=True)
    assert gone_on.iteration == 3
    for one, other in zip(straight.parameters(), gone_on.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    other_rate = Recipe.named(NAMES[1], [*changes, "optimizer.lr=0.1"])
    with pytest.raises(UsageError, match="optimizer.lr was 1.6 and is now 0.1"):
        train(other_rate, tmp_path / "run", resume=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_small_network_trains_by_it(name, photos, tmp_path):
    later = ["method.start=1"] if "consistent" in name else []
    groups = ["model.groups=2", "model.width_per_group=2"] if "resnext" in name else []
    recipe = Recipe.named(name, [*SMALL, *later, *groups, f"data.path={photos}"])
    model = train(recipe, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 3
    assert all(math.isfinite(loss) for loss in losses)
    assert any("validation_robust_accuracy" in line for line in lines) == (name in ROBUST)
    again = load(tmp_path / "run")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(images), again(images))
