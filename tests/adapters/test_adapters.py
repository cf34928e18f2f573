"""Other libraries' attacks find through the adapter what they find alone, and their models are judged like the net."""

import ast
import contextlib
import copy
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bessemer as bs
from bessemer import adapters
from bessemer.attacks import EOT, FGSM, PGD, FGSLine, Transfer, Worst
from bessemer.data import load
from bessemer.errors import ImagesError, LabelsError, ModelError, ThreatError, UsageError
from bessemer.evaluation import Suite
from bessemer.models import Normalize
from bessemer.randomness import subseed
from bessemer.threat import L1, L2, Linf

# what other libraries do at import and inside is theirs
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning", "ignore::FutureWarning")

EPS = 0.08
THREAT = Linf(EPS)
MEAN, STD = 0.3, 0.4


@pytest.fixture(scope="module")
def torchattacks():
    return pytest.importorskip("torchattacks", reason="torchattacks is not installed: make bench installs it")


@pytest.fixture(scope="module")
def foolbox():
    return pytest.importorskip("foolbox", reason="foolbox is not installed: make bench installs it")


@pytest.fixture(scope="module")
def evasion():
    return pytest.importorskip("art.attacks.evasion", reason="ART is not installed: make bench installs it")


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def bare(digits):
    """A network for normalised images."""
    torch.manual_seed(5)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    images, labels = digits.train.at(slice(None))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net((images - MEAN) / STD), labels).backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def model(bare):
    """The same for images in [0, 1]."""
    return nn.Sequential(Normalize(MEAN, STD), bare).eval()


@pytest.fixture(scope="module")
def other(bare):
    """The model that attacks are built on, and must not ask."""
    strange = copy.deepcopy(bare)
    strange.register_forward_hook(lambda *_: pytest.fail("the attack asked the model it was built on"))
    return strange


@pytest.fixture
def batch(digits):
    return digits.test.at(slice(0, 60))


def predictions(model, images):
    with torch.no_grad():
        return model(images).argmax(1)


def classifier(net, **settings):
    estimators = pytest.importorskip("art.estimators.classification", reason="ART is not installed")
    settings = {"clip_values": (0, 1), "device_type": "cpu", **settings}
    return estimators.PyTorchClassifier(net, nn.CrossEntropyLoss(), (1, 8, 8), 10, **settings)


def seeded(seed=0):
    """As the adapter seeds other people's generators, from its documentation."""
    seed = subseed(seed, 7)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


class Official:
    """The interface of the authors' AutoAttack, around a search that is one random step and one sign step."""

    class Part:
        def __init__(self, predict, device):
            self.predict, self.device = predict, device

    def __init__(self, model, norm="Linf", eps=0.3, seed=None, device="cuda"):
        self.model, self.norm, self.epsilon, self.seed, self.device = model, norm, eps, seed, device
        self.version, self.attacks_to_run = "standard", ["apgd-ce", "square"]
        self.part = self.Part(model, device)

    def run_standard_evaluation(self, x_orig, y_orig, bs=250, return_labels=False):
        generator = torch.Generator().manual_seed(self.seed)
        found = []
        with torch.no_grad():
            for x, y in zip(x_orig.split(bs), y_orig.split(bs), strict=True):
                assert self.model(x).shape[1] == 10
                x = x.to(self.device)
                with torch.enable_grad():
                    start = x + self.epsilon * (2 * torch.rand(x.shape, generator=generator) - 1)
                    start = start.clamp(0, 1).requires_grad_()
                    loss = nn.functional.cross_entropy(self.part.predict(start), y.to(self.part.device))
                    (gradient,) = torch.autograd.grad(loss, start)
                end = start.detach() + 2 * self.epsilon * gradient.sign()
                found.append((x + (end - x).clamp(-self.epsilon, self.epsilon)).clamp(0, 1))
        return torch.cat(found)


def test_torchattacks_finds_the_same_images(torchattacks, model, other, batch):
    built = {
        "FGSM": lambda on: torchattacks.FGSM(on, eps=EPS),
        "PGD": lambda on: torchattacks.PGD(on, eps=EPS, alpha=EPS / 4, steps=5, random_start=True),
        "PGDL2": lambda on: torchattacks.PGDL2(on, eps=0.4, alpha=0.1, steps=5, random_start=True),
    }
    for name, build in built.items():
        ours = adapters.attack(build(other), L2(0.4) if name == "PGDL2" else THREAT)
        seeded(3)
        expected = build(model)(*batch)
        assert (predictions(model, expected) != batch[1]).any()
        torch.testing.assert_close(ours(model, *batch, seed=3), expected, rtol=0, atol=1e-6, msg=name)


def test_torchattacks_attacks_inside_attacks_are_pointed_at_the_judged_model_too(torchattacks, model, other, batch):
    images, labels = batch[0][:30], batch[1][:30]

    def build(on, **settings):
        attack = torchattacks.AutoAttack(on, eps=0.2, version="rand", **settings)
        for part in attack._autoattack.attacks:
            part.eot_iter, part.steps = 1, 3
        return attack

    expected = build(model, seed=4)(images, labels)
    assert not torch.equal(expected, images)
    ours = adapters.attack(build(other, seed=4), Linf(0.2))
    torch.testing.assert_close(ours(model, images, labels), expected, rtol=0, atol=1e-6)
    # without a seed of its own, it takes ours instead of the clock's
    unseeded = [adapters.attack(build(other), Linf(0.2))(model, images, labels, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(unseeded[0], unseeded[1])
    assert not torch.equal(unseeded[0], unseeded[2])


def test_torchattacks_normalisation_is_the_judged_models_affair(torchattacks, model, other, batch):
    attack = torchattacks.FGSM(other, eps=EPS)
    expected = adapters.attack(attack, THREAT)(model, *batch)
    normalised = torchattacks.FGSM(other, eps=EPS)
    normalised.set_normalization_used(mean=[0.7], std=[0.2])
    assert torch.equal(adapters.attack(normalised, THREAT)(model, *batch), expected)
    assert normalised._normalization_applied is True


@pytest.mark.parametrize("name", ["LinfFastGradientAttack", "LinfPGD", "L2PGD"])
def test_foolbox_finds_the_same_images(name, foolbox, model, batch):
    threat = L2(0.4) if name == "L2PGD" else THREAT
    attack = getattr(foolbox.attacks, name)(random_start=True)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    seeded(3)
    _, expected, success = attack(wrapped, *batch, epsilons=threat.eps)
    assert success.any()
    found = adapters.attack(attack, threat)(model, *batch, seed=3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["FastGradientMethod", "ProjectedGradientDescent"])
def test_art_finds_the_same_images(name, evasion, model, other, batch):
    settings = {"eps": EPS, "num_random_init": 1, "batch_size": 60}
    if name == "ProjectedGradientDescent":
        settings |= {"max_iter": 5, "eps_step": EPS / 4, "verbose": False}
    build = getattr(evasion, name)
    seeded(3)
    expected = torch.from_numpy(build(classifier(model), **settings).generate(*(part.numpy() for part in batch)))
    assert (predictions(model, expected) != batch[1]).any()
    strange = classifier(other, clip_values=(-1, 2), preprocessing=(0.5, 3.0))
    ours = adapters.attack(build(strange, **settings), THREAT)
    torch.testing.assert_close(ours(model, *batch, seed=3), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss", ["cross_entropy", "difference_logits_ratio"])
def test_art_attacks_keep_the_loss_they_were_built_with(loss, evasion, model, bare, batch):
    images, labels = batch[0][:20], batch[1][:20]
    attack = evasion.AutoProjectedGradientDescent

    def build(net):
        estimator = classifier(net)
        return attack(estimator, eps=EPS, eps_step=EPS, max_iter=4, nb_random_init=1, loss_type=loss, verbose=False)

    seeded()
    expected = torch.from_numpy(build(model).generate(images.numpy(), labels.numpy()))
    strange = copy.deepcopy(bare)
    attack = adapters.attack(build(strange), THREAT)
    strange.register_forward_hook(lambda *_: pytest.fail("the attack asked the model it was built on"))
    torch.testing.assert_close(attack(model, images, labels), expected, rtol=0, atol=1e-6)


def test_autoattack_of_its_authors_finds_the_same_images(model, other, batch):
    expected = Official(model, eps=EPS, seed=9, device="cpu").run_standard_evaluation(*batch)
    foreign = Official(other, eps=EPS, seed=9)
    assert torch.equal(adapters.attack(foreign, THREAT)(model, *batch), expected)
    assert foreign.model is foreign.part.predict is other, "the caller's attack changed"
    function = Official(lambda images: pytest.fail("asked"), eps=EPS, seed=9)
    assert torch.equal(adapters.attack(function, THREAT)(model, *batch), expected)
    unseeded = adapters.attack(Official(other, eps=EPS), THREAT)
    assert torch.equal(unseeded(model, *batch, seed=1), unseeded(model, *batch, seed=1))
    assert not torch.equal(unseeded(model, *batch, seed=1), unseeded(model, *batch, seed=2))


def everything(torchattacks, foolbox, evasion, net):
    art = classifier(net)
    return {
        "torchattacks": adapters.attack(torchattacks.PGD(net, eps=EPS, alpha=EPS / 4, steps=5), THREAT),
        "Foolbox": adapters.attack(foolbox.attacks.LinfPGD(steps=5, rel_stepsize=0.25), THREAT),
        "ART": adapters.attack(evasion.FastGradientMethod(art, eps=EPS), THREAT),
        "AutoAttack": adapters.attack(Official(net, eps=EPS), THREAT),
        "Carlini and Wagner": adapters.attack(torchattacks.CW(net, c=10, steps=30, lr=0.05), "L2"),
        "DeepFool": adapters.attack(foolbox.attacks.L2DeepFoolAttack(steps=10), "L2"),
        "ART's DeepFool": adapters.attack(evasion.DeepFool(art, max_iter=10, verbose=False), "L2"),
    }


def test_an_evaluation_holds_ours_and_theirs(torchattacks, foolbox, evasion, model, other, batch):
    theirs = everything(torchattacks, foolbox, evasion, other)
    ours = {"ours": PGD(THREAT, steps=5, step_size=EPS / 4), "nearest": FGSLine()}
    found = bs.evaluate(model, batch, Suite("both", ours | theirs), batch_size=35)
    clean = int(found.right.sum())
    left = {name: found.robust_accuracy(name).count for name in (*ours, *theirs)}
    for name in ("torchattacks", "Foolbox", "ART", "AutoAttack"):
        assert left["ours"] - 3 <= left[name] < clean - 5, (name, left)
        assert found.attack(name)["linf"].max() <= EPS + 1e-6
    for name in ("Carlini and Wagner", "DeepFool", "ART's DeepFool"):
        rows = found.attack(name)
        turned = found.right & (rows["prediction"] != found.label)
        assert turned.sum() > 0.5 * clean, name
        assert (rows["l2"][~turned] == 0).all(), "where nothing was found, the original comes back"
        if "DeepFool" in name:
            assert np.median(rows["l2"][turned]) < np.median(found.attack("nearest")["l2"][turned])
    assert {name: found.attack(name).kind for name in theirs} == {name: theirs[name].kind for name in theirs}


def test_the_model_comes_back_as_it_was(torchattacks, foolbox, evasion, other, bare, batch):
    judged = nn.Sequential(Normalize(MEAN, STD), copy.deepcopy(bare), nn.Dropout(0.5)).train()
    judged(batch[0]).sum().backward()
    gradients = [parameter.grad.clone() for parameter in judged.parameters()]
    for name, attack in everything(torchattacks, foolbox, evasion, other).items():
        states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        images = batch[0][:5].clone()
        attack(judged, images, batch[1][:5])
        assert torch.equal(images, batch[0][:5]), name
        assert judged.training, name
        assert judged[2].training, name
        assert all(parameter.requires_grad for parameter in judged.parameters()), name
        for parameter, gradient in zip(judged.parameters(), gradients, strict=True):
            assert torch.equal(parameter.grad, gradient), name
        assert torch.equal(torch.get_rng_state(), states[0]), name
        assert np.random.get_state()[1].tolist() == states[1], name
        assert random.getstate() == states[2], name


def test_repeats_with_its_seed_and_takes_any_batch(torchattacks, foolbox, evasion, model, other, batch):
    for name, attack in everything(torchattacks, foolbox, evasion, other).items():
        images, labels = batch[0][:4], batch[1][:4]
        found = attack(model, images, labels, seed=5)
        assert torch.equal(found, attack(model, images, labels, seed=5)), name
        assert attack(model, images[:0], labels[:0]).shape == (0, 1, 8, 8), name
        assert attack(model, images[:1], labels[:1]).shape == (1, 1, 8, 8), name
        with torch.inference_mode():
            assert torch.equal(attack(model, images, labels, seed=5), found), name
        precise = attack(copy.deepcopy(model).double(), images.double(), labels, seed=5)
        assert precise.dtype == torch.float64, name
        with pytest.raises(LabelsError, match="0 … 9"):
            attack(model, images, labels + 10)
        with pytest.raises(ModelError, match="probabilities"):
            attack(nn.Sequential(model, nn.Softmax(1)), images, labels)
        with pytest.raises(ImagesError, match="run from"):
            attack(model, images + 1, labels)
        assert " at 0x" not in repr(attack), name
        assert attack == copy.copy(attack), name
        hash(attack)


@pytest.mark.parametrize(("steps", "rows"), [(1, 7), (4, 7)])
def test_passes_are_counted(steps, rows, torchattacks, foolbox, model, batch):
    images, labels = batch[0][:rows], batch[1][:rows]
    attack = adapters.attack(torchattacks.PGD(model, eps=EPS, alpha=0.01, steps=steps), THREAT)
    outcome = attack.run(model, images, labels)
    assert outcome.forwards.tolist() == [steps + 1] * rows  # one look before
    assert outcome.backwards.tolist() == [steps] * rows
    forwards, backwards = attack.passes(10)
    assert (outcome.forwards <= forwards).all()
    assert (outcome.backwards <= backwards).all()
    assert adapters.attack(torchattacks.FGSM(model, eps=EPS), THREAT).passes(10) == (1003, 1000)


def test_passes_of_parts_of_a_batch_are_shared_evenly(evasion, model, batch):
    images, labels = batch[0][:7], batch[1][:7]
    calls = []
    handle = model.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    attack = adapters.attack(evasion.BoundaryAttack(classifier(model), targeted=False, max_iter=2, verbose=False), "L2")
    outcome = attack.run(model, images, labels)
    handle.remove()
    assert set(calls) - {7}, "every call held the whole batch, which tests nothing"
    assert outcome.forwards.sum() == sum(calls)
    assert outcome.forwards.max() - outcome.forwards.min() <= 2  # misclassified images are looked at only once or twice
    assert outcome.backwards.sum() == 0


def test_among_other_attacks_passes_go_to_the_images_they_were_for(torchattacks, model, batch):
    """`Worst` hands on the images still standing, at places of their own."""
    images, labels = batch[0][:6], predictions(model, batch[0][:6])
    labels[:3] = (labels[:3] + 1) % 10
    theirs = adapters.attack(torchattacks.PGD(model, eps=0.001, alpha=0.001, steps=2), Linf(0.001))
    outcome = Worst((FGSM(Linf(0.001)), theirs)).run(model, images, labels, until_success=True)
    assert outcome.backwards.tolist() == [1] * 3 + [3] * 3


def test_through_a_transfer_among_other_attacks_the_surrogate_is_attacked(torchattacks, model, other, batch):
    images, labels = batch[0][:6], predictions(model, batch[0][:6])
    surrogate = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), 10))
    transfer = Transfer(adapters.attack(torchattacks.FGSM(other, eps=EPS), THREAT), surrogate)
    found = EOT(transfer, samples=1)(model, images, labels)
    assert torch.equal(found, transfer(model, images, labels))
    assert not torch.equal(found, transfer.attack(model, images, labels))


def test_images_already_misclassified_are_not_attacked_where_only_verdicts_count(torchattacks, model, batch):
    images, labels = batch[0][:6], predictions(model, batch[0][:6])
    labels[:2] = (labels[:2] + 1) % 10
    attack = adapters.attack(torchattacks.FGSM(model, eps=EPS), THREAT)
    outcome = attack.run(model, images, labels, until_success=True)
    assert outcome.forwards.tolist() == [1, 1, 2, 2, 2, 2]
    assert torch.equal(outcome.images[:2], images[:2])
    assert not torch.equal(outcome.images[2:], images[2:])


def test_a_target_is_passed_on(torchattacks, foolbox, evasion, model, other, batch):
    images, labels = batch[0][:30], predictions(model, batch[0][:30])
    target = (labels + 1) % 10
    threat = Linf(0.3)
    attacks = [
        torchattacks.PGD(other, eps=0.3, alpha=0.05, steps=15),
        foolbox.attacks.LinfPGD(steps=15, rel_stepsize=0.2),
        evasion.ProjectedGradientDescent(classifier(other), eps=0.3, eps_step=0.05, max_iter=15, verbose=False),
    ]
    for foreign in attacks:
        found = adapters.attack(foreign, threat)(model, images, labels, target=target)
        assert (predictions(model, found) == target).float().mean() > 0.8, foreign
    refusing = [
        torchattacks.TPGD(other, eps=0.3),
        foolbox.attacks.LinfFastGradientAttack(),
        evasion.SquareAttack(classifier(model), eps=0.3),
        Official(other, eps=0.3),
    ]
    for foreign in refusing:
        with pytest.raises(UsageError, match="does not take a target"):
            adapters.attack(foreign, threat)(model, images, labels, target=target)
    attacks[0].set_mode_targeted_by_label(quiet=True)
    attacks[2].set_params(targeted=True)
    for foreign in (attacks[0], attacks[2]):
        with pytest.raises(UsageError, match="labels for targets"):
            adapters.attack(foreign, threat)(model, images, labels)


class Leaver(Official):
    """One whose images leave the ball by some amount."""

    def __init__(self, model, by):
        super().__init__(model, eps=EPS, seed=0)
        self.by = by

    def run_standard_evaluation(self, x_orig, y_orig, bs=250):
        return torch.full_like(x_orig, 0.5) + EPS + self.by


def test_only_rounding_dust_is_clipped_and_the_judge_refuses_the_rest(model):
    images, labels = torch.full((4, 1, 8, 8), 0.5), predictions(model, torch.full((4, 1, 8, 8), 0.5))
    found = adapters.attack(Leaver(model, 5e-7), THREAT)(model, images, labels)
    assert THREAT.size(found - images).max() <= EPS + 1e-7
    assert not torch.equal(found, torch.full_like(images, 0.5 + EPS) + 5e-7)
    for by in (5e-6, 0.01, float("nan")):
        attack = adapters.attack(Leaver(model, by), THREAT)
        returned = torch.full_like(images, 0.5) + EPS + by
        assert torch.equal(attack(model, images, labels).nan_to_num(), returned.nan_to_num())
        refused = pytest.raises(ThreatError, match="an image moved by") if by != 5e-6 else contextlib.nullcontext()
        with refused:
            bs.evaluate(model, (images, labels), Suite("one", {"leaver": attack}))


def test_images_that_are_none_are_refused(model, batch):
    class Scrambled(Official):
        def run_standard_evaluation(self, x_orig, y_orig, bs=250):
            return x_orig.flatten(1)

    with pytest.raises(ImagesError, match=r"returned \(60, 64\) instead of \(60, 1, 8, 8\)"):
        adapters.attack(Scrambled(model, eps=EPS), THREAT)(model, *batch)


def test_a_threat_that_does_not_fit_is_refused(torchattacks, foolbox, evasion, bare):
    with pytest.raises(UsageError, match=r"radius of 0.08, but the threat Linf:0.1 has 0.1"):
        adapters.attack(torchattacks.PGD(bare, eps=EPS), Linf(0.1))
    with pytest.raises(UsageError, match="built for L2"):
        adapters.attack(torchattacks.APGD(bare, norm="L2", eps=0.1), Linf(0.1))
    with pytest.raises(UsageError, match="searches a ball; say which"):
        adapters.attack(torchattacks.PGD(bare, eps=EPS), "Linf")
    with pytest.raises(UsageError, match=r"foolbox.LinfProjectedGradientDescentAttack searches a ball.*Linf\("):
        adapters.attack(foolbox.attacks.LinfPGD(), "Linf")
    with pytest.raises(UsageError, match=r"foolbox.Repeated searches a ball"):
        adapters.attack(foolbox.attacks.LinfPGD().repeat(2), "Linf")
    with pytest.raises(UsageError, match="built for L2"):
        adapters.attack(foolbox.attacks.L2DeepFoolAttack(), L1(0.1))
    with pytest.raises(UsageError, match="distance=foolbox.distances"):
        adapters.attack(foolbox.attacks.InversionAttack(), Linf(0.1))
    with pytest.raises(UsageError, match="needs a box"):
        adapters.attack(foolbox.attacks.LinfPGD(), Linf(0.1, box=None))
    with pytest.raises(UsageError, match="radius of 8, but"):
        adapters.attack(evasion.FastGradientMethod(classifier(bare), eps=8), Linf(8 / 255))
    with pytest.raises(UsageError, match="built for L2"):
        adapters.attack(evasion.FastGradientMethod(classifier(bare), norm=2, eps=0.1), Linf(0.1))
    with pytest.raises(UsageError, match="built for L1"):
        adapters.attack(Official(bare, norm="L1", eps=0.1), Linf(0.1))
    adapters.attack(evasion.FastGradientMethod(classifier(bare), eps=0.5, minimal=True), "Linf")
    with pytest.raises(UsageError, match="built for L2, not for Linf"):
        adapters.attack(foolbox.attacks.L2DeepFoolAttack(), "Linf")
    with pytest.raises(UsageError, match="norm: 'L3' is not known"):
        adapters.attack(torchattacks.CW(bare), "L3")
    with pytest.raises(UsageError, match="PGD is a class"):
        adapters.attack(torchattacks.PGD, THREAT)
    for thing in (PGD(THREAT), None, foolbox.PyTorchModel(bare, bounds=(0, 1), device="cpu")):
        with pytest.raises(UsageError, match="is no attack of"):
            adapters.attack(thing, THREAT)


def test_its_name_says_library_class_and_settings(torchattacks, foolbox, evasion, bare):
    attack = adapters.attack(torchattacks.PGD(bare, eps=0.1, alpha=0.02, steps=3), Linf(0.1))
    expected = "torchattacks.PGD(eps=0.1, alpha=0.02, steps=3, random_start=True)"
    assert repr(attack) == f"adapters.attack({expected}, Linf(0.1))"
    attack = adapters.attack(foolbox.attacks.L2DeepFoolAttack(steps=9, candidates=3), L2(0.5))
    expected = "foolbox.L2DeepFoolAttack(steps=9, candidates=3, overshoot=0.02, loss='logits')"
    assert repr(attack) == f"adapters.attack({expected}, L2(0.5))"
    attack = adapters.attack(evasion.SaliencyMapMethod(classifier(bare), theta=0.2, verbose=False), "L1")
    expected = "art.SaliencyMapMethod(theta=0.2, gamma=1.0, batch_size=1, verbose=False)"
    assert repr(attack) == f"adapters.attack({expected}, 'L1')"
    attack = adapters.attack(Official(bare, eps=0.1, seed=3), Linf(0.1))
    settings = "norm='Linf', epsilon=0.1, version='standard', attacks_to_run=['apgd-ce', 'square'], seed=3"
    assert repr(attack) == f"adapters.attack(autoattack.Official({settings}), Linf(0.1))"


def test_no_other_library_is_imported_before_one_of_its_objects_comes_in():
    """A bare import would fail where they are not installed; `import_module` runs when it is needed."""
    for path in Path(adapters.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & {"torchattacks", "foolbox", "eagerpy", "art"}, path


# --- their models ----------------------------------------------------------------------------------------------------


def foolbox_model(net):
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed")
    preprocessing = {"mean": [MEAN], "std": [STD], "axis": -3}
    return foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu", preprocessing=preprocessing)


def foolbox_grey(net):
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed")
    preprocessing = {"mean": [255 * MEAN], "std": [255 * STD], "axis": -3}
    return foolbox.PyTorchModel(net, bounds=(0, 255), device="cpu", preprocessing=preprocessing)


def foolbox_wrapped(net):
    return foolbox_grey(net).transform_bounds((-1, 1), wrapper=True)


def art_grey(net):
    return classifier(net, clip_values=(0, 255), preprocessing=(255 * MEAN, 255 * STD))


def art_plain(net):
    return classifier(nn.Sequential(Normalize(MEAN, STD), net), clip_values=None)


def torchattacks_attack(net):
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is not installed")
    attack = torchattacks.FGSM(net)
    attack.set_normalization_used(mean=[MEAN], std=[STD])
    return attack


def robust_bench(net):
    return nn.Sequential(Normalize(MEAN, STD), net)


FOREIGN = [
    foolbox_model,
    foolbox_grey,
    foolbox_wrapped,
    art_grey,
    art_plain,
    torchattacks_attack,
    robust_bench,
]


@pytest.mark.parametrize("wrapped", FOREIGN, ids=lambda build: build.__name__)
def test_our_attacks_meet_the_same_network(wrapped, model, bare, batch):
    adapted = adapters.model(wrapped(copy.deepcopy(bare)))
    torch.testing.assert_close(adapted(batch[0]), model(batch[0]), rtol=1e-4, atol=1e-4)
    suite = Suite("one", {"FGSM": FGSM(THREAT), "PGD": PGD(THREAT, steps=5), "ray": FGSLine()})
    theirs, ours = (bs.evaluate(each, batch, suite) for each in (adapted, model))
    assert np.array_equal(theirs.prediction, ours.prediction)
    assert 5 < ours.robust_accuracy("PGD").count < 55
    for name in suite.attacks:
        assert np.array_equal(theirs.attack(name)["prediction"], ours.attack(name)["prediction"]), name


@pytest.mark.parametrize(
    "wrapped", [each for each in FOREIGN if each is not foolbox_wrapped], ids=lambda build: build.__name__
)
def test_gradients_that_underflow_are_asked_again_in_float64(wrapped, bare, batch):
    steep = copy.deepcopy(bare)
    with torch.no_grad():
        steep[-1].weight *= 60
        steep[-1].bias *= 60
    adapted = adapters.model(wrapped(steep))
    images, labels = batch[0], predictions(adapted, batch[0])
    outcome = FGSM(THREAT).run(adapted, images, labels, until_success=True)
    met = outcome.zero_gradients > 0
    assert met.any()
    assert (outcome.zero_in_float64[met] == 0).any()
    assert not outcome.zero_in_float64.isnan().any()


def test_a_wrapped_model_is_put_into_evaluation_mode(batch):
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10)).eval()
    for wrapped in (foolbox_model, foolbox_wrapped, art_grey):
        adapted = adapters.model(wrapped(net)).train()
        assert net.training, "the network inside belongs to the model"
        outcomes = [FGSM(THREAT)(adapted, *batch, seed=seed) for seed in (0, 1)]
        assert torch.equal(*outcomes)
        assert net.training
        net.eval()


def test_art_without_torch_only_answers(model, batch):
    estimators = pytest.importorskip("art.estimators.classification", reason="ART is not installed")
    grey = estimators.BlackBoxClassifier(
        lambda x: model(torch.from_numpy(x) / 255).detach().numpy(), (1, 8, 8), 10, clip_values=(0, 255)
    )
    rounded = classifier(model, postprocessing_defences=_rounding())
    for estimator in (grey, rounded):
        adapted = adapters.model(estimator)
        assert torch.equal(predictions(adapted, batch[0]), predictions(model, batch[0]))
        with pytest.raises(ModelError, match="no gradient"):
            FGSM(THREAT)(adapted, *batch)


def _rounding():
    return pytest.importorskip("art.defences.postprocessor").Rounded(decimals=3)


def test_what_is_no_model_is_refused(foolbox):
    with pytest.raises(ModelError, match="cannot be called"):
        adapters.model(3)

    class Foreign(foolbox.models.Model):
        bounds = foolbox.types.Bounds(0, 1)

        def __call__(self, inputs):
            return inputs

    with pytest.raises(ModelError, match="holds no torch network"):
        adapters.model(Foreign())
    plain = lambda images: images.flatten(1)  # noqa: E731
    assert adapters.model(plain) is plain
