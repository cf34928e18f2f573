"""The judge: verdicts per image, whatever the data comes as, and what it refuses."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import bessemer as bs
from bessemer.attacks import FGSM, PGD, FGSLine, HotCold
from bessemer.data import load
from bessemer.errors import ImagesError, LabelsError, ModelError, ThreatError, UsageError
from bessemer.evaluation import evaluate
from bessemer.records import Evaluation
from bessemer.threat import L2, Linf


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def model(digits):
    """A small network that knows its digits; trained with dropout, left in training mode."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))
    images, labels = digits.train.at(slice(None))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def pair(digits):
    return digits.test.at(slice(0, 150))


@pytest.fixture(scope="module")
def quick(model, pair):
    return evaluate(model, pair, "quick", Linf(0.1))


def test_the_verdicts_are_the_models_own(model, pair, quick):
    images, labels = pair
    model.eval()
    clean = model(images).argmax(1)
    right = clean == labels
    model.train()
    assert quick.clean_accuracy().count == right.sum()
    for name, attack in {"FGSM": FGSM(Linf(0.1)), "PGD-20": PGD(Linf(0.1), steps=20)}.items():
        found = attack(model, images, labels)
        model.eval()
        standing = right & (model(found).argmax(1) == labels)
        model.train()
        assert quick.robust_accuracy(name).count == standing.sum(), name
    assert quick.worst_case().count <= min(quick.robust_accuracy(rows.name).count for rows in quick.attacks)
    assert 0 < quick.worst_case().count < quick.clean_accuracy().count


def test_the_model_comes_back_as_it_was(model, quick):
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_any_split_into_batches_gives_the_same_verdicts(model, pair, quick):
    images, labels = pair
    stream = ((images[start : start + 64], labels[start : start + 64]) for start in range(0, 150, 64))
    for data, size in ((pair, 7), ((images.numpy(), labels.numpy()), 50), (stream, 500)):
        again = evaluate(model, data, "quick", Linf(0.1), batch_size=size)
        for rows, expected in zip(again.attacks, quick.attacks, strict=True):
            assert np.array_equal(rows["prediction"] == again.label, expected["prediction"] == quick.label)


def test_a_data_set_is_judged_on_its_test_images(model, digits):
    found = evaluate(model, digits, "quick", Linf(0.05), samples=40)
    assert found.label.tolist() == digits.test.labels[:40].tolist()
    assert found.classes == list(digits.classes)


def test_minimal_attacks_keep_distances_and_similarity(model, pair):
    found = evaluate(model, pair, "bang")
    for name, attack in {"FGS": FGSLine(), "HC1": HotCold()}.items():
        images = attack(model, *pair)
        turned = found.right & (found.attack(name)["prediction"] != found.label)
        assert turned.any()
        distance = (images - pair[0]).abs().amax((1, 2, 3)).numpy()
        np.testing.assert_allclose(found.attack(name)["linf"][turned], distance[turned], atol=1e-6)
        scores = bs.pass_score(images[turned], pair[0][turned])
        np.testing.assert_allclose(found.attack(name)["pass_score"][turned], scores, atol=1e-9)
        assert np.isnan(found.attack(name)["pass_score"][~turned]).all()
    curve = next(curve for curve in found.curves if curve.attack == "HC1")
    assert curve.robust == sorted(curve.robust, reverse=True)
    assert curve.robust[0] == found.clean_accuracy().count
    assert curve.robust[-1] == found.robust_accuracy("HC1").count


def test_curves_never_rise_with_the_radius(quick):
    (curve,) = quick.curves
    assert curve.robust == sorted(curve.robust, reverse=True)
    assert curve.robust[0] == quick.clean_accuracy().count
    assert curve.eps[-1] == 0.5
    assert curve.robust[-1] == 0


def test_the_gallery_shows_the_images_that_were_judged(model, pair, quick):
    assert {exhibit.attack for exhibit in quick.gallery} == {rows.name for rows in quick.attacks}
    for exhibit in quick.gallery:
        np.testing.assert_array_equal(exhibit.original, pair[0][exhibit.index].numpy())
        rows = quick.attack(exhibit.attack)
        assert exhibit.adversarial_prediction == rows["prediction"][exhibit.index]
        assert exhibit.linf == pytest.approx(rows["linf"][exhibit.index], abs=1e-6)


def test_an_evaluation_survives_its_file(quick, tmp_path):
    again = Evaluation.read(quick.save(tmp_path))
    assert again.to_json() == quick.to_json()
    assert quick.to_csv().count("\n") == 1 + 4 * 150
    assert len(quick.rows) == 4 * 150
    assert quick.rows[150]["attack"] == "FGSM"


def test_another_question_is_kept_beside_the_first(model, pair, quick, tmp_path):
    other = evaluate(model, (pair[0][:20], pair[1][:20]), "quick", L2(0.5))
    assert other.save(tmp_path) != quick.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_nan_is_no_success_and_is_told(model, pair):
    """A model that answers NaN once its first pixel is not black is not fooled by being driven there."""
    images, labels = pair[0][:40] * 0.9, pair[1][:40]
    model.eval()
    labels = model(images).argmax(1)

    def breaks(x):
        return model(x) + torch.where(x[:, 0, 0, :1] > 0.05, torch.nan, 0.0)

    found = evaluate(breaks, (images, labels), "quick", Linf(0.1))
    model.train()
    finding = next(finding for finding in found.findings if finding.name == "answers are numbers")
    assert finding.verdict == "doubt"
    assert found.notes["answers_not_a_number"] > 0
    reached = found.attack("FGSM")["prediction"] != found.label
    assert reached.sum() < 40


def test_models_of_other_precision_are_converted_or_refused(model, pair):
    double = copy.deepcopy(model).double()
    assert evaluate(double, pair, "quick", Linf(0.1), samples=20).clean_accuracy().count > 15
    with pytest.raises(ModelError, match=r"full precision: model\.float"):
        evaluate(copy.deepcopy(model).bfloat16(), pair, "quick", Linf(0.1))


def test_a_model_without_a_gradient_is_refused_in_a_sentence(model, pair):
    class Quantised(nn.Module):
        def forward(self, x):
            return model((x.detach() * 8).round() / 8)

    with pytest.raises(ModelError, match="no gradient at its images"):
        evaluate(Quantised(), pair, "quick", Linf(0.1))


def test_any_callable_is_a_model(model, pair, quick):
    model.eval()
    found = evaluate(lambda x: model(x), pair, "quick", Linf(0.1))
    model.train()
    assert found.worst_case() == quick.worst_case()


def test_other_norms_are_measured_in_their_own(model, pair):
    found = evaluate(model, pair, "quick", L2(0.5))
    assert found.attack("PGD-20")["l2"].max() <= 0.5 + 1e-5
    assert found.curves[0].norm == "L2"


def test_what_is_wrong_with_the_data_is_said(model, pair):
    images, labels = pair
    with pytest.raises(ImagesError, match="Normalize"):
        evaluate(model, (images * 2 - 1, labels), "quick", Linf(0.1))
    with pytest.raises(ImagesError):
        evaluate(model, (images * float("nan"), labels), "quick", Linf(0.1))
    with pytest.raises(LabelsError, match="0 … 9"):
        evaluate(model, (images, labels + 5), "quick", Linf(0.1))
    with pytest.raises(LabelsError):
        evaluate(model, (images, labels[:3]), "quick", Linf(0.1))
    with pytest.raises(UsageError, match="no images"):
        evaluate(model, [], "quick", Linf(0.1))
    with pytest.raises(UsageError, match="iterable of such pairs"):
        evaluate(model, [images], "quick", Linf(0.1))
    with pytest.raises(UsageError, match="samples"):
        evaluate(model, pair, "quick", Linf(0.1), samples=0)


def test_what_is_wrong_with_the_question_is_said(model, pair, digits):
    with pytest.raises(UsageError, match="did you mean 'quick'"):
        evaluate(model, pair, "quik", Linf(0.1))
    with pytest.raises(UsageError, match="needs a threat"):
        evaluate(model, pair, "quick")
    with pytest.raises(ThreatError, match="8/255"):
        evaluate(model, pair, "quick", Linf(8))
    with pytest.raises(ModelError, match="probabilities"):
        evaluate(nn.Sequential(model, nn.Softmax(1)), pair, "quick", Linf(0.1))
    with pytest.raises(ModelError, match="6 logits per image, but the data has 10 classes"):
        evaluate(nn.Sequential(nn.Flatten(), nn.Linear(64, 6)), digits, "quick", Linf(0.1))


def test_an_attack_that_cheats_is_caught(model, pair, monkeypatch):
    monkeypatch.setattr(Linf, "project", lambda self, adversarial, images: adversarial + 0.3)
    with pytest.raises(ThreatError, match="more than the radius"):
        evaluate(model, pair, "quick", Linf(0.1))
