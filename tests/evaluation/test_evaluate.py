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
from bessemer.evaluation import Suite, evaluate
from bessemer.records import NOT_TRIED, WORST, Evaluation
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


def test_a_random_model_is_judged_by_draws_that_the_attack_has_not_seen(pair):
    drawn = []

    class Random(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            noise = torch.rand(x.shape)
            drawn.append((torch.is_grad_enabled(), noise.flatten()[0].item()))
            return self.linear((x + noise).flatten(1))

    evaluate(Random(), pair, Suite("one", {"FGSM": FGSM(Linf(0.1))}))
    seen = {first for graded, first in drawn if graded}
    assert drawn[-1][0] is False
    assert drawn[-1][1] not in seen


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
    assert [curve.attack for curve in quick.curves] == ["FGSM", "PGD-20, margin loss", WORST]
    for curve in quick.curves:
        assert curve.robust == sorted(curve.robust, reverse=True)
        assert curve.robust[0] == quick.clean_accuracy().count
        assert curve.eps[-1] == 0.5
    *singles, worst = quick.curves
    assert worst.robust[-1] == 0
    for place in range(len(worst.eps)):
        assert worst.robust[place] <= min(curve.robust[place] for curve in singles)


def test_the_gallery_shows_the_images_that_were_judged(model, pair, quick):
    assert {exhibit.attack for exhibit in quick.gallery} == {rows.name for rows in quick.attacks}
    for exhibit in quick.gallery:
        np.testing.assert_allclose(exhibit.original, pair[0][exhibit.index].numpy(), atol=2**-11)
        rows = quick.attack(exhibit.attack)
        assert exhibit.adversarial_prediction == rows["prediction"][exhibit.index]
        assert exhibit.linf == pytest.approx(rows["linf"][exhibit.index], abs=1e-6)


def test_specimens_are_shown_under_the_attack_that_decided_them(quick):
    decided, last = quick.decided(), quick.attacks[-1].name
    assert [exhibit.index for exhibit in quick.specimens] == list(np.flatnonzero(quick.right)[:24])
    for exhibit in quick.specimens:
        assert exhibit.attack == (decided[exhibit.index] or last)
        assert (exhibit.adversarial_prediction != exhibit.label) == bool(decided[exhibit.index])


def test_a_cascade_asks_only_what_stands_and_decides_the_same(model, pair):
    attacks = {"FGSM": FGSM(Linf(0.1)), "PGD": PGD(Linf(0.1), steps=20), "margin": PGD(Linf(0.1), loss="margin")}
    whole, cascade = (evaluate(model, pair, Suite("s", attacks, cascade=flag)) for flag in (False, True))
    assert cascade.worst_case() == whole.worst_case()
    assert cascade.decided() == whole.decided()
    second = cascade.attack("PGD")
    untried = second["prediction"] == NOT_TRIED
    assert untried.tolist() == cascade.turned("FGSM").tolist()
    assert untried.any()
    assert (second["forwards"][untried] == 0).all()
    standing = [cascade.robust_accuracy(name).count for name in attacks]
    assert standing == sorted(standing, reverse=True)
    assert standing[-1] == cascade.worst_case().count


def test_images_of_any_source_are_streamed_in_pieces(model, pair):
    """A loader's batches are cut, never joined: no more than one is held."""
    images, labels = pair
    asked = []

    def source():
        for start in range(0, 150, 30):
            asked.append(start)
            yield images[start : start + 30], labels[start : start + 30]

    found = evaluate(model, source(), "quick", Linf(0.1), samples=70)
    assert len(found) == 70
    assert asked == [0, 30, 60], "what is not judged is not read"
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=40)
    assert (
        evaluate(model, loader, "quick", Linf(0.1)).prediction.tolist()
        == evaluate(model, pair, "quick", Linf(0.1)).prediction.tolist()
    )


def test_progress_runs_from_nothing_to_all_and_knows_what_stands(model, pair):
    stages = []
    found = evaluate(model, pair, "quick", Linf(0.1), batch_size=50, watch=stages.append)
    done = [stage.done for stage in stages]
    assert done == sorted(done)
    assert done[-1] == 150
    assert {stage.total for stage in stages} == {150}
    assert stages[-1].standing == found.worst_case()
    assert {stage.attack for stage in stages} >= {"FGSM", "PGD-20", "curve", ""}


def test_images_of_the_8_bit_kind_stay_in_the_ball(model, pair):
    images = (pair[0] * 255).round() / 255
    found = evaluate(model, (images, pair[1]), "quick", Linf(0.1), eight_bit=True, samples=60)
    for exhibit in found.gallery:
        if exhibit.attack != "noise":
            grey = exhibit.adversarial * 255
            np.testing.assert_allclose(grey, grey.round(), atol=0.1)  # pictures are kept as halves
    assert found.attack("PGD-20")["linf"].max() <= 0.1 + 1e-6
    assert found.attack("PGD-20")["linf"].max() * 255 == pytest.approx(25, abs=1e-3), "25.5 rounds down"


def test_adversarial_images_are_written_as_the_deciding_attack_left_them(model, pair, tmp_path):
    found = evaluate(model, pair, "quick", Linf(0.1), batch_size=60, save_adversarial=tmp_path)
    files = [np.load(path) for path in sorted(tmp_path.iterdir())]
    assert [len(file["images"]) for file in files] == [60, 60, 30]
    images = torch.from_numpy(np.concatenate([file["images"] for file in files]))
    assert np.concatenate([file["attack"] for file in files]).tolist() == found.decided()
    model.eval()
    prediction = model(images).argmax(1).numpy()
    model.train()
    assert prediction.tolist() == np.concatenate([file["prediction"] for file in files]).tolist()
    assert (prediction == found.label).sum() == found.worst_case().count
    standing = np.array([not by for by in found.decided()])
    torch.testing.assert_close(images[standing], pair[0][standing], rtol=0, atol=0)


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
