"""Folders as ImageNet lies on disk: splits, streams that resume and are shared, and everything that can be wrong."""

from __future__ import annotations

import os
import re
import shutil
from itertools import islice

import numpy as np
import pytest
import torch
from photos import imagenet, photo, save
from PIL import Image, ImageOps

from bessemer import data, randomness
from bessemer.data import Augmentation, Batches, LazySplit, Split, decoding, image_folder, unreadable
from bessemer.errors import DataError, UsageError

AUGMENTATION = Augmentation(flip=True, jitter=0.4, lighting=0.1)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """24 classes; 6 images each to train and 2 to test, and 4 odd ones in one class of both."""
    return imagenet(tmp_path_factory.mktemp("photos") / "imagenet")


@pytest.fixture
def small(tmp_path):
    """A folder to spoil: 3 classes, 4 images each to train and 2 to test, the odd ones besides."""
    return imagenet(tmp_path / "small", classes=3, train=4)


def load(home, **settings):
    return data.load("image-folder", path=str(home), **{"size": 32, "resize": 36, "workers": 0, **settings})


def as_pillow_shows(path):
    with Image.open(path) as file:
        covering = ImageOps.cover(ImageOps.exif_transpose(file).convert("RGB"), (36, 36), Image.Resampling.BICUBIC)
    left, top = (covering.width - 32) // 2, (covering.height - 32) // 2
    return np.asarray(covering)[top : top + 32, left : left + 32].transpose(2, 0, 1)


def test_test_images_are_centre_squares_in_turn_from_all_classes(untouched):
    loaded = load(untouched)
    assert loaded.name == "imagenet"
    assert loaded.classes == tuple(f"n{label:08}" for label in range(24))
    assert loaded.image_shape == (3, 32, 32)
    test = loaded.test
    assert len(test) == 24 * 2 + 4
    assert sorted(test.labels[:26].bincount(minlength=24).tolist()) == [1] * 23 + [3]
    images, labels = test.at(slice(None))
    assert images.dtype == torch.float32
    seen = set()
    for place, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        path = test.images.path(place)
        assert path.parent == untouched / "val" / loaded.classes[label]
        assert np.array_equal((image * 255).round().byte().numpy(), as_pillow_shows(path)), path
        seen.add(path)
    assert seen == set((untouched / "val").glob("*/*"))


def test_some_training_images_validate_always_the_same_and_never_a_test_image(untouched):
    loaded = load(untouched)
    files = {
        name: {split.images.path(place) for place in range(len(split))}
        for name, split in (("train", loaded.train), ("validation", loaded.validation), ("test", loaded.test))
    }
    assert loaded.validation.labels.tolist() == list(range(24))
    assert files["train"] | files["validation"] == set((untouched / "train").glob("*/*"))
    assert not files["train"] & files["validation"]
    for split in (loaded.train, loaded.validation):
        for place in range(len(split)):
            assert split.images.path(place).parent.name == loaded.classes[split.labels[place]]
    again = load(untouched).validation
    assert {again.images.path(place) for place in range(24)} == files["validation"]
    assert len(load(untouched, held_out=0).validation) == 0
    assert len(load(untouched, held_out=0).train) == 24 * 6 + 4


def test_at_most_so_many_of_a_class_are_held_out(tmp_path):
    for part, count in (("train", 40), ("val", 1)):
        for name in "ab":
            for number in range(count):
                save(tmp_path / "x" / part / name / f"{number}.png", photo(number, 8, 8))
    assert load(tmp_path / "x").validation.labels.tolist() == [0, 1] * 4
    assert load(tmp_path / "x", held_out=3).validation.labels.bincount().tolist() == [3, 3]


def test_a_lazy_split_answers_as_one_in_memory(untouched):
    lazy = load(untouched, workers=3).test
    memory = Split(lazy.images[:], lazy.labels)
    index = torch.tensor([5, 0, 51, 7])
    mask = torch.zeros(len(lazy), dtype=torch.bool)
    mask[index] = True
    for asked in (slice(2, 9), slice(50, 99), index, mask, slice(None)):
        for found, expected in zip(lazy.at(asked), memory.at(asked), strict=True):
            assert torch.equal(found, expected)
        assert torch.equal(lazy.images[asked], memory.images[asked])
    for count in (None, 0, 7, 1000):
        assert len(lazy.first(count)) == len(memory.first(count))
        assert torch.equal(lazy.first(count).at(slice(None))[0], memory.first(count).at(slice(None))[0])
    assert lazy.image_shape == memory.image_shape
    assert torch.equal(lazy.to("cpu").at(index)[0], memory.at(index)[0])


def test_nothing_is_decoded_before_it_is_asked_for(small, monkeypatch):
    decoded = []
    square = decoding.centre_square
    monkeypatch.setattr("bessemer.data.lazy.centre_square", lambda *asked: decoded.append(asked) or square(*asked))
    loaded = load(small).to("cpu")
    batches = Batches(loaded.train, 4)
    split = loaded.test.first(5)
    assert not decoded
    split.at(slice(1, 3))
    assert len(decoded) == 2
    batches.next()
    assert len(decoded) == 2


def test_a_sample_stands_for_all_classes(untouched, monkeypatch):
    train = load(untouched).train
    assert torch.equal(train.sample(), train.images[:])
    monkeypatch.setattr("bessemer.data.lazy.SAMPLE", 24)
    sample = train.sample()
    assert sample.dtype == torch.uint8
    assert sample.shape == (24, 3, 32, 32)
    assert torch.equal(sample, train.sample())
    places = [(train.images[:] == image).flatten(1).all(1).nonzero()[0].item() for image in sample]
    assert len(set(train.labels[places].tolist())) > 20
    memory = Split(train.images[:], train.labels)
    assert memory.sample() is memory.images


def some(split, count=7, seed=3, position=0, place=(0, 1), augmentation=AUGMENTATION, size=12):
    batches = Batches(split, size, seed, augmentation=augmentation, place=place)
    batches.position = position
    return [batches.next() for _ in range(count)]


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert torch.equal(batch.index, other.index)
        assert torch.equal(batch.labels, other.labels)
        assert torch.equal(batch.images, other.images)
        assert (batch.seed, batch.iteration) == (other.seed, other.iteration)


@pytest.fixture(scope="module")
def expected(untouched):
    """26 batches of 12: more than two epochs of 124 images."""
    return some(load(untouched).train, 26)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_batch(untouched, expected, workers):
    assert_same(some(load(untouched, workers=workers).train, 26), expected)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [1, 4, 11, 20])
def test_a_stream_goes_on_with_the_very_same_batches_from_anywhere(untouched, expected, workers, done):
    train = load(untouched, workers=workers).train
    assert_same(some(train, 5, position=12 * done), expected[done : done + 5])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_position_can_be_set_in_the_middle(untouched, expected, workers):
    batches = Batches(load(untouched, workers=workers).train, 12, 3, augmentation=AUGMENTATION)
    assert_same([batches.next() for _ in range(2)], expected[:2])
    batches.position = 12 * 9
    assert_same([batches.next() for _ in range(2)], expected[9:11])
    batches.position = 0
    assert_same([batches.next() for _ in range(1)], expected[:1])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_that_share_a_batch_read_its_rows(untouched, expected, workers, world):
    train = load(untouched, workers=workers).train
    for rank in range(world):
        own = some(train, 4, position=12 * 9, place=(rank, world))
        assert_same(own, [batch.part(rank, world) for batch in expected[9:13]])


def test_every_image_of_an_epoch_comes_once_cut_anew_each_time(untouched):
    train = load(untouched).train
    batches = some(train, 31, augmentation=None, size=8)  # two epochs of 124 images
    index = torch.cat([batch.index for batch in batches])
    assert sorted(index[:124].tolist()) == sorted(index[124:].tolist()) == list(range(124))
    images = torch.cat([batch.images for batch in batches])
    first, second = images[:124][index[:124].argsort()], images[124:][index[124:].argsort()]
    assert (first != second).flatten(1).any(1).all()
    assert torch.equal(torch.cat([batch.labels for batch in batches]), train.labels[index])
    draws = randomness.uniform((10, 5), batches[3].seed, batches[3].index, stream=11).tolist()
    for image, place, own in zip(batches[3].images, batches[3].index.tolist(), draws, strict=True):
        square = decoding.random_square(train.images.path(place), 32, own, "")
        assert np.array_equal((image * 255).round().byte().numpy(), square.transpose(2, 0, 1))


def test_an_evaluation_reads_a_lazy_data_set(untouched):
    from bessemer.attacks import FGSM
    from bessemer.evaluation import Suite, evaluate
    from bessemer.threat import Linf

    loaded = load(untouched)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 24))
    suite = Suite("one", {"fgsm": FGSM(Linf(2 / 255))})
    memory = Split(loaded.test.images[:], loaded.test.labels)
    lazy, eager = (evaluate(model, split, suite, samples=20, batch_size=8) for split in (loaded.test, memory))
    assert len(lazy) == 20
    assert lazy.attack("fgsm").to_json() == eager.attack("fgsm").to_json()


# what can be wrong


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_file_is_refused_by_name_when_its_turn_comes(small, workers):
    bad = small / "train" / "n00000002" / "bad.JPEG"
    bad.write_bytes((small / "train" / "n00000002" / "n00000002_0.JPEG").read_bytes()[:400])
    loaded = load(small, held_out=0, workers=workers)
    says = rf'^{bad} cannot be read as an image \(.+\); replace it, take it away, or set data\.unreadable = "skip"'
    batches = Batches(loaded.train, 8)
    with pytest.raises(DataError, match=says):
        list(islice((batches.next() for _ in range(10)), 10))
    with pytest.raises(DataError, match=says):
        loaded.train.at(slice(None))
    with pytest.raises(DataError, match=says):
        loaded.train.sample()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_vanishes_is_named(small, workers):
    loaded = load(small, workers=workers)
    gone = loaded.train.images.path(3)
    gone.unlink()
    with pytest.raises(DataError, match=rf"^{gone} cannot be read as an image \(No such file or directory\); "):
        some(loaded.train, 5, size=8)


def test_after_a_refusal_the_same_batch_is_asked_for_again(small):
    loaded = load(small)
    expected = some(loaded.train, 4, size=8)
    away = loaded.train.images.path(int(expected[1].index[0]))
    batches = Batches(loaded.train, 8, 3, augmentation=AUGMENTATION)
    content = away.read_bytes()
    away.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        [batches.next() for _ in range(4)]
    away.write_bytes(content)
    assert_same([batches.next()], [expected[batches.position // 8 - 1]])


def spoil(home):
    """Three files that cannot be read, in two classes of train."""
    whole = (home / "train" / "n00000000" / "n00000000_0.JPEG").read_bytes()
    (home / "train" / "n00000000" / "cut.JPEG").write_bytes(whole[: len(whole) // 2])
    (home / "train" / "n00000002" / "empty.JPEG").write_bytes(b"")
    (home / "train" / "n00000002" / "gone.JPEG").symlink_to(home / "nowhere.JPEG")


def test_skipped_files_are_counted_listed_and_left_out(small):
    before = load(small)
    spoil(small)
    with pytest.warns(UserWarning, match="3 of 19 images cannot be read and are left out: ") as caught:
        loaded = load(small, unreadable="skip")
    (said,) = [str(warning.message) for warning in caught]
    assert said.startswith(f"{small}/train: ")
    for named in (r"n00000000/cut\.JPEG \(.+\)", r"n00000002/empty\.JPEG \(.+\)", r"n00000002/gone\.JPEG \(No such"):
        assert re.search(named, said)
    for split in ("train", "validation", "test"):
        assert [getattr(loaded, split).images.path(place) for place in range(len(getattr(loaded, split)))] == [
            getattr(before, split).images.path(place) for place in range(len(getattr(before, split)))
        ]
    assert_same(some(loaded.train, 3, size=8), some(before.train, 3, size=8))


def test_a_look_is_remembered_class_by_class(small, monkeypatch):
    spoil(small)
    looked = []
    fault = unreadable.fault
    monkeypatch.setattr(unreadable, "fault", lambda path: looked.append(path.parent.name) or fault(path))
    told = []
    found = image_folder.unreadable_in(str(small), progress=lambda *progress: told.append(progress))
    assert len(found) == 3
    assert len(looked) == 19 + 10
    assert told[0] == (f"{small}/train", 5, 19)
    assert told[-1] == (f"{small}/val", 10, 10)
    assert image_folder.unreadable_in(str(small)) == found
    assert len(looked) == 29
    save(small / "train" / "n00000001" / "new.JPEG", photo(0, 40, 40))
    looked.clear()
    assert image_folder.unreadable_in(str(small)) == found
    assert looked == ["n00000001"] * 9
    mended = shutil.copy(small / "val" / "n00000000" / "n00000000_1.JPEG", small / "train" / "n00000000" / "cut.JPEG")
    assert len(image_folder.unreadable_in(str(small))) == 2
    with pytest.warns(UserWarning, match="2 of 20 images"):
        loaded = load(small, unreadable="skip", held_out=0)
    assert mended in {loaded.train.images.path(place) for place in range(len(loaded.train))}


def test_a_long_list_is_shortened_and_says_where_the_rest_is(small):
    for number in range(7):
        (small / "val" / "n00000001" / f"bad{number}.png").write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"7 of 17 images .*bad4\.png \(.*\), … \(all of them in .+\.json\)") as caught:
        load(small, unreadable="skip")
    assert "bad5" not in str(caught[0].message)
    where = unreadable.kept_at(small / "val")
    assert "bad6.png" in where.read_text()
    where.write_text("damaged")
    with pytest.warns(UserWarning, match="7 of 17 images"):
        load(small, unreadable="skip")


def test_a_look_that_cannot_be_remembered_is_only_a_warning(small, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.warns(UserWarning, match="the images are looked through again next time"):
        loaded = load(small, unreadable="skip")
    assert len(loaded.test) == 10


def test_a_class_without_any_readable_image_is_named(small):
    for file in (small / "val" / "n00000002").iterdir():
        file.write_bytes(b"x")
    with pytest.raises(DataError, match=f"{small}/val/n00000002 holds no image that can be read"):
        load(small, unreadable="skip")


def test_missing_empty_and_odd_class_folders_are_named(small):
    (small / "train" / "n00000007").mkdir()
    with pytest.raises(DataError, match=f"{small}/train/n00000007 holds no image; put "):
        load(small)
    save(small / "train" / "n00000007" / "x.JPEG", photo(0, 40, 40))
    with pytest.raises(DataError, match=f"{small}/val lacks the class 'n00000007' that train has"):
        load(small)
    shutil.rmtree(small / "train" / "n00000007")
    save(small / "val" / "n00000009" / "x.JPEG", photo(0, 40, 40))
    with pytest.raises(DataError, match=f"{small}/val has a class 'n00000009' that train lacks"):
        load(small)
    shutil.rmtree(small / "val")
    with pytest.raises(DataError, match=f"{small}/val is missing"):
        load(small)


def test_without_train_there_is_only_something_to_test(small):
    expected = load(small).test
    shutil.rmtree(small / "train")
    loaded = load(small)
    assert len(loaded.train) == len(loaded.validation) == 0
    assert loaded.image_shape == (3, 32, 32)
    assert torch.equal(loaded.test.at(slice(None))[0], expected.at(slice(None))[0])


def test_names_of_any_alphabet_are_found(small):
    for name in ("Zürich", "東京", "a b", os.fsdecode(b"latin\xe9")):
        shutil.copy(small / "val" / "n00000000" / "n00000000_0.JPEG", small / "val" / "n00000000" / f"{name}.JPEG")
    loaded = load(small, unreadable="skip")
    assert len(loaded.test.at(slice(None))[0]) == 14


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"size": 0}, "0 pixels cannot be cut out of 36"),
        ({"size": 40}, "40 pixels cannot be cut out of 36"),
        ({"held_out": -1}, "held_out and workers cannot be negative, found -1 and 0"),
        ({"workers": -2}, "held_out and workers cannot be negative, found 10 and -2"),
        ({"unreadable": "skpi"}, "unreadable: 'skpi' is not known; did you mean 'skip'"),
        ({"wokers": 2}, "did you mean 'workers'"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(small, settings, says):
    with pytest.raises(UsageError, match=says):
        load(small, **settings)


def test_the_folder_must_be_named_and_there(tmp_path):
    with pytest.raises(UsageError, match="path: the data set `image-folder` needs"):
        data.load("image-folder")
    with pytest.raises(DataError, match="path: there is no folder"):
        data.load("image-folder", path=str(tmp_path / "no"))


def test_a_lazy_split_is_a_split(untouched):
    assert isinstance(load(untouched).train, LazySplit)
    assert isinstance(load(untouched).train, Split)
