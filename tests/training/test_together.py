"""Models trained as one end where each ends by itself, and leave the same folders behind."""

import json
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import bessemer as bs
from bessemer.data import Batch
from bessemer.errors import DivergedError, FileError, UsageError
from bessemer.models import CifarQuick, DigitsNet, LeNet
from bessemer.records.run import RunRecord
from bessemer.training import SGD, Adversarial, Bang, Checkpoint, Plain, Recipe, load, parameter_groups, train
from bessemer.training.checkpoint import newest
from bessemer.training.stack import Stack, products
from bessemer.training.together import train_together

SMALL = ["training.log_every=10", "training.validate_every=20", "training.checkpoint_every=10"]
# dropout, a batch of its own for each seed, and a factor for misclassified samples
GRID = [(0, 1.0, 0.785), (1, 1.3, 0.84), (2, 0.7, 0.3)]


def grid(name, *changes):
    points = [[f"seed={seed}", f"method.beta={beta}", f"method.epsilon={epsilon}"] for seed, beta, epsilon in GRID]
    if not name.startswith("bang"):
        points = [point[:1] for point in points]
    return [Recipe.named(name, [*SMALL, *changes, *point]) for point in points]


def bang(*changes):
    return grid("bang-digits", "method.misclassified=0.5", *changes)


def folders_in(path, count=3):
    return [path / str(place) for place in range(count)]


def last(folder):
    return Checkpoint.read(newest(folder))


def apart(one, other):
    """The largest distance between two sets of weights, each tensor over its own length."""
    assert one.keys() == other.keys()
    return max(
        ((one[name] - other[name]).double().norm() / other[name].double().norm().clamp(min=1e-3)).item() for name in one
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folders = folders_in(tmp_path_factory.mktemp("undisturbed"))
    train_together(bang("training.iterations=30"), folders)
    return folders


@pytest.mark.parametrize(("iterations", "tolerance"), [(1, 1e-6), (25, 1e-4)])
@pytest.mark.parametrize("recipes", [bang, lambda *changes: grid("digits", "model.dropout=0.5", *changes)])
def test_runs_agree_with_those_trained_one_by_one(recipes, iterations, tolerance, tmp_path):
    recipes = recipes(f"training.iterations={iterations}")
    together, alone = folders_in(tmp_path / "together"), folders_in(tmp_path / "alone")
    train_together(recipes, together)
    for recipe, one, other in zip(recipes, together, alone, strict=True):
        train(recipe, other)
        start = [Checkpoint.read(folder / "checkpoints" / "initial.safetensors").weights for folder in (one, other)]
        assert apart(*start) == 0
        ours, theirs = last(one), last(other)
        assert apart(ours.weights, start[0]) > 100 * tolerance  # or else nothing was learnt
        assert apart(ours.weights, theirs.weights) < tolerance
        assert torch.equal(ours.random["cpu"], theirs.random["cpu"])  # the same dropout masks were drawn
        assert ours.optimizer["param_groups"] == theirs.optimizer["param_groups"]
        velocities = [
            {str(number): state["velocity"] for number, state in each.optimizer["state"].items()}
            for each in (ours, theirs)
        ]
        assert apart(*velocities) < 10 * tolerance
        assert (ours.iteration, ours.position, ours.model) == (theirs.iteration, theirs.position, theirs.model)


@pytest.mark.skipif(not os.environ.get("BESSEMER_DATA"), reason="$BESSEMER_DATA does not name a folder with MNIST")
def test_lenets_on_mnist_agree_with_those_trained_one_by_one(monkeypatch, tmp_path):
    mnist = bs.data.load("mnist")
    few = replace(mnist, train=mnist.train.first(1000), validation=mnist.validation.first(100))
    monkeypatch.setattr(bs.data, "load", lambda *names, **settings: few)
    recipes = grid("bang-lenet-mnist", "training.iterations=12")
    together, alone = folders_in(tmp_path / "together"), folders_in(tmp_path / "alone")
    train_together(recipes, together)
    for recipe, one, other in zip(recipes, together, alone, strict=True):
        train(recipe, other)
        assert apart(last(one).weights, last(other).weights) < 1e-4


def steps_apart(make, methods, shared, dtype, steps=20):
    """How far models are, after some updates, from those that were updated one by one."""
    torch.manual_seed(0)
    models = [make().to(dtype) for _ in methods]
    alone = [make().to(dtype) for _ in methods]
    for one, other in zip(models, alone, strict=True):
        other.load_state_dict(one.state_dict())
    states = []
    for seed in range(len(methods)):
        torch.manual_seed(seed)
        states.append(torch.get_rng_state())
    generators = [torch.Generator() for _ in methods]
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
    batches = []
    for step in range(steps):
        count = 1 if shared else len(methods)
        images = torch.rand(
            (count, 12, *models[0].image_shape), dtype=dtype, generator=torch.Generator().manual_seed(step)
        )
        labels = torch.randint(10, (count, 12), generator=torch.Generator().manual_seed(step))
        batches.append([Batch(*pair, torch.arange(12), 0) for pair in zip(images, labels, strict=True)])
    lr = 1e-4 if make is CifarQuick else 0.01
    stack = Stack(models, methods, generators).train()
    optimizer = SGD(parameter_groups(stack.network, []), lr, 0.9, 5e-4)
    for batch in batches:
        optimizer.zero_grad()
        one = batch[0]
        if not shared:
            one = Batch(*(torch.stack([getattr(b, part) for b in batch]) for part in ("images", "labels", "index")), 0)
        stack.loss(one).backward()
        optimizer.step()
    distances = []
    for place, (model, method) in enumerate(zip(alone, methods, strict=True)):
        torch.set_rng_state(states[place])
        optimizer = SGD(model.parameters(), lr, 0.9, 5e-4)
        with ExitStack() as until_done:
            prepared = method.prepare(model, until_done).train()
            for batch in batches:
                optimizer.zero_grad()
                loss = method.loss(prepared, batch[0 if shared else place])
                loss.backward()
                optimizer.step()
        assert stack.losses[place].item() == pytest.approx(loss.item(), rel=1e-3)
        assert torch.equal(generators[place].get_state(), torch.get_rng_state())
        distances.append(apart(dict(models[place].named_parameters()), dict(model.named_parameters())))
    return max(distances)


BANGS = [Bang(beta, epsilon, misclassified=0.5) for _, beta, epsilon in GRID]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("methods", [[Plain()] * 3, BANGS, [Bang(1.2, 0.8, bias=False), Bang(0.5, 0.84, bias=False)]])
@pytest.mark.parametrize("make", [LeNet, lambda: DigitsNet(dropout=0.5)])
def test_in_double_precision_updates_are_those_of_each_model_by_itself(make, methods, shared):
    assert steps_apart(make, methods, shared, torch.float64, steps=4 if make is LeNet else 20) < 1e-11


def test_a_network_that_keeps_a_mean_image_agrees_too():
    assert steps_apart(CifarQuick, BANGS[:2], True, torch.float64, steps=3) < 1e-9
    # rounding decides some maxima: the first filters are drawn with a deviation of 1e-4
    assert steps_apart(CifarQuick, BANGS[:2], False, torch.float32, steps=1) < 1e-4
    assert steps_apart(CifarQuick, BANGS[:2], False, torch.float32, steps=3) < 1e-2


def test_a_convolution_is_a_matrix_product_under_vmap_as_well():
    for settings in ({}, {"stride": 2, "padding": (1, 2)}, {"padding": 2, "stride": (1, 3)}):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 4, (3, 2), **settings).double() for _ in range(2)]
        images = torch.rand(5, 3, 9, 8, dtype=torch.float64, requires_grad=True)
        weights = torch.stack([layer.weight for layer in layers]).detach().requires_grad_()
        biases = torch.stack([layer.bias for layer in layers]).detach()

        def of_one(weight, bias, layer=layers[0], images=images):
            return torch.func.functional_call(Product(layer), {"layer.weight": weight, "layer.bias": bias}, (images,))

        found = torch.func.vmap(of_one)(weights, biases)
        expected = torch.stack([layer(images) for layer in layers])
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        upstream = torch.rand_like(expected)
        gradients = torch.autograd.grad(found, (images, weights), upstream)
        reference = torch.autograd.grad(expected, (images, *(layer.weight for layer in layers)), upstream)
        torch.testing.assert_close(gradients[0], reference[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradients[1], torch.stack(reference[1:]), rtol=1e-12, atol=1e-12)


class Product(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, images):
        return products(self.layer, images, self.layer.bias)


def lines(folder):
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in read]


def test_a_grid_that_was_killed_goes_on_to_the_same_weights(undisturbed, tmp_path):
    def die(moment):
        if moment.iteration == 15:
            raise KeyboardInterrupt

    recipes, folders = bang("training.iterations=30"), folders_in(tmp_path)
    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        train_together(recipes, folders, watch=die)
    with pytest.raises(UsageError, match="holds a run already"):
        train_together(recipes, folders)
    train_together(recipes, folders, resume=True)
    assert torch.equal(torch.get_rng_state(), before)
    for folder, whole in zip(folders, undisturbed, strict=True):
        assert apart(last(folder).weights, last(whole).weights) == 0
        assert lines(folder) == lines(whole)


def test_a_kill_between_two_checkpoints_of_the_same_moment_goes_back_for_all(undisturbed, tmp_path):
    recipes, folders, seen = bang("training.iterations=30"), folders_in(tmp_path), []
    train_together(recipes, folders, watch=seen.append, stop=lambda: len(seen) == 19)
    newest(folders[2]).unlink()  # the kill came before the last was written
    train_together(recipes, folders, resume=True, watch=seen.append)
    assert [moment.iteration for moment in seen] == [*range(1, 21), *range(11, 31)]
    for folder, whole in zip(folders, undisturbed, strict=True):
        assert apart(last(folder).weights, last(whole).weights) == 0
    train_together(recipes, folders, resume=True, watch=seen.append)  # nothing is left to do
    assert len(seen) == 40


def test_a_grid_killed_at_its_first_checkpoint_begins_again(undisturbed, tmp_path):
    recipes, folders = bang("training.iterations=30"), folders_in(tmp_path)
    train_together(recipes, folders, stop=lambda: True)
    for name in ("initial.safetensors", "step-00000001.safetensors"):
        (folders[0] / "checkpoints" / name).unlink()
    (folders[1] / "checkpoints" / "step-00000001.safetensors").unlink()
    (folders[2] / "checkpoints" / "step-00000001.safetensors").unlink()
    train_together(recipes, folders, resume=True)
    assert apart(last(folders[0]).weights, last(undisturbed[0]).weights) == 0


def test_runs_that_came_unequally_far_are_not_thrown_back(undisturbed, tmp_path):
    recipes = bang("training.iterations=30")
    begun, kept = tmp_path / "begun", last(undisturbed[0]).iteration
    train(recipes[1], begun, stop=lambda: True)
    with pytest.raises(UsageError, match="no recent checkpoint in common; train each by itself"):
        train_together(recipes[:2], [undisturbed[0], begun], resume=True)
    with pytest.raises(UsageError, match="no recent checkpoint in common"):
        train_together(recipes[:2], [undisturbed[0], tmp_path / "new"], resume=True)
    assert last(undisturbed[0]).iteration == kept


def test_metrics_that_were_cut_off_are_named(tmp_path):
    recipes, folders = bang("training.iterations=20"), folders_in(tmp_path)
    train_together(recipes, folders)
    (folders[1] / "metrics.jsonl").unlink()
    with pytest.raises(FileError, match=r"1.metrics\.jsonl is missing or shorter than it was"):
        train_together(recipes, folders, resume=True)


def test_the_folders_are_ordinary_runs(undisturbed, tmp_path):
    model = load(undisturbed[1])
    assert (model.recipe.seed, model.iteration, model.recipe.method.epsilon) == (1, 30, 0.84)
    evaluated = bs.evaluate(model, bs.data.load("digits").test.first(40), "quick", bs.Linf(0.1))
    assert len(evaluated) == 40
    record = RunRecord.read(undisturbed[1])
    assert record.provenance["together"] == 3
    assert record.provenance["seed"] == 1
    assert [line["iteration"] for line in record.metrics if "loss" in line] == [10, 20, 30]
    assert [line["iteration"] for line in record.metrics if "validation_accuracy" in line] == [20, 30]


def test_a_run_that_was_stopped_together_can_be_finished_alone(undisturbed, tmp_path):
    recipes, folders, seen = bang("training.iterations=30"), folders_in(tmp_path), []
    train_together(recipes, folders, watch=seen.append, stop=lambda: len(seen) == 14)
    train(recipes[1], folders[1], resume=True)
    assert apart(last(folders[1]).weights, last(undisturbed[1]).weights) < 1e-4
    assert torch.equal(last(folders[1]).random["cpu"], last(undisturbed[1]).random["cpu"])


def test_a_loss_that_is_no_number_names_its_run_and_the_others_go_on_without_it(undisturbed, tmp_path):
    recipes, folders = bang("training.iterations=30"), folders_in(tmp_path)
    lost = Recipe.named(
        "bang-digits", [*SMALL, "method.misclassified=0.5", "training.iterations=30", "method.beta=1e30"]
    )
    with pytest.raises(DivergedError, match="1 is nan at iteration 10; go on with the others"):
        train_together([recipes[0], lost, recipes[2]], folders)
    train_together([recipes[0], recipes[2]], [folders[0], folders[2]], resume=True)
    assert apart(last(folders[2]).weights, last(undisturbed[2]).weights) < 1e-4


def adapted(*changes, name="bang-digits"):
    return Recipe.named(name, [*SMALL, "training.iterations=2", *changes])


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        ([adapted(), adapted("training.batch_size=32")], "only, but .*training.batch_size was 64 and is now 32"),
        ([adapted(), adapted("method.misclassified=0.5")], "method.misclassified was 1.0 and is now 0.5"),
        ([adapted(), adapted(name="digits")], "may differ in seed, method.beta and method.epsilon only"),
        ([adapted("init=runs/none")], "begin with random weights; train it by itself"),
        ([adapted("method.beta={'conv*'=1.0}")], "need one beta for all layers, above 0"),
        ([adapted("method.epsilon={'conv*'=1.0}")], "need one epsilon for all layers"),
        ([adapted("method.beta=0.0")], "need one beta for all layers, above 0, found 0.0"),
        ([adapted(name="adversarial-digits")], "only plain training, and BANG around it .* not Adversarial"),
        ([adapted("method.contributing=0.5")], "only plain training, and BANG around it .*contributing=0.5"),
        ([adapted("training.precision=bfloat16")], "models trained together have no precision of their own"),
        ([adapted("training.average=0.9")], "have no average of their own"),
        ([adapted("norm.name=group")], "have no norm of their own"),
        ([adapted("evaluation.checkpoint=best")], "have no checkpoint of their own"),
        ([], "need a folder each, not 0 recipes"),
    ],
)
def test_what_cannot_be_trained_together_is_refused_in_words(recipes, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        train_together(recipes, folders_in(tmp_path, len(recipes)))


def test_every_model_needs_a_folder_of_its_own(tmp_path):
    with pytest.raises(UsageError, match=r"2 recipes for 2 folders \(1 of them different\)"):
        train_together(bang()[:2], [tmp_path / "one", Path(tmp_path, "other", "..", "one")])


def test_layers_that_cannot_be_computed_together_are_named():
    generators = [torch.Generator(), torch.Generator()]
    resnets = [bs.models.ResNet(depth=8, width=4) for _ in generators]
    with pytest.raises(UsageError, match="is a BatchNorm2d, which cannot be computed for several models at once"):
        Stack(resnets, [Plain()] * 2, generators)
    inside = [Bang(inside=Adversarial(bs.attacks.PGD(bs.Linf(0.1)))), Bang()]
    with pytest.raises(UsageError, match="only plain training, and BANG around it"):
        Stack([DigitsNet(), DigitsNet()], inside, generators)


def test_dropout_on_images_that_all_models_share_is_refused():
    class Dropping(DigitsNet):
        def forward(self, images):
            return super().forward(self.dropout(images))

    stack = Stack([Dropping(dropout=0.5) for _ in range(2)], [Plain()] * 2, [torch.Generator() for _ in range(2)])
    batch = Batch(torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long), torch.arange(4), 0)
    with pytest.raises(UsageError, match="dropout is a dropout layer on what all models share"):
        stack.loss(batch)
