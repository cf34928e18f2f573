"""What is kept on the way counts for the question and the images it was found for, and for nothing else."""

import pytest
import torch
from torch import nn

from bessemer import processes
from bessemer.attacks import PGD, Attack
from bessemer.data import load
from bessemer.errors import FileError, RunInUseError, UsageError
from bessemer.evaluation import Suite, evaluate, memory
from bessemer.evaluation.journal import Journal
from bessemer.threat import Linf

THREAT = Linf(0.1)


@pytest.fixture
def journal(tmp_path):
    opened = Journal(tmp_path / "journal")
    opened.open()
    yield opened
    opened.close()


def test_a_part_counts_for_its_question_and_images_alone(journal, tmp_path):
    journal.ask({"seed": 0})
    journal.keep(0, "attack-00", "these", {"value": 1})
    assert journal.recall(0, "attack-00", "these") == {"value": 1}
    assert journal.recall(0, "attack-00", "others") is None
    assert journal.recall(1, "attack-00", "these") is None
    journal.ask({"seed": 1})
    assert not list((tmp_path / "journal").glob("0*"))


def test_what_another_process_left_under_another_question_does_not_count(journal, tmp_path):
    journal.ask({"seed": 0})
    stranger = Journal(tmp_path / "journal")  # one that does not hold the lock
    stranger.ask({"seed": 1})
    stranger.keep(0, "clean", "these", {"value": 2})
    assert journal.recall(0, "clean", "these") is None


def test_only_what_a_journal_wrote_is_cleared_away(tmp_path):
    """A folder of the user's own may be given for it."""
    (tmp_path / "thesis.txt").write_text("mine")
    for seed in (0, 1):
        journal = Journal(tmp_path)
        journal.open()
        journal.ask({"seed": seed})
        journal.keep(0, "clean", "these", {})
        journal.close()
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_one_evaluation_at_a_time_and_the_next_after_its_end(journal, tmp_path):
    other = Journal(tmp_path / "journal")
    with pytest.raises(RunInUseError, match="another process is at the same evaluation"):
        other.open()
    journal.close()
    assert other.open() == {}
    other.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="file/journal cannot be written"):
        Journal(tmp_path / "file" / "journal").open()


# --- whole evaluations -----------------------------------------------------------------------------------------------


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def pair(start=0, count=40):
    images, _ = load("digits").test.at(slice(start, start + count))
    return images, network()(images).argmax(1)


def suite(**settings):
    return Suite("own", {"5": PGD(THREAT, steps=5), "10": PGD(THREAT, steps=10)}, **settings)


def stopping(monkeypatch, after):
    """Ctrl-C after so many attacks; returns what ran."""
    ran, original = [], Attack.run

    def run(self, *arguments, **settings):
        if len(ran) == after:
            raise KeyboardInterrupt
        ran.append(self)
        return original(self, *arguments, **settings)

    monkeypatch.setattr(Attack, "run", run)
    return ran


def found(evaluation):
    return {key: value for key, value in evaluation.to_json().items() if key != "provenance"}


def test_parts_of_other_images_never_mix_in(tmp_path, monkeypatch):
    """All of A; B stopped after its first attack; B again must not take A's second attack for its own."""
    folder = tmp_path / "journal"
    evaluate(network(), pair(0), suite(), resume=folder)
    with monkeypatch.context() as patch:
        stopping(patch, after=1)
        with pytest.raises(KeyboardInterrupt):
            evaluate(network(), pair(40), suite(), resume=folder)
    again = evaluate(network(), pair(40), suite(), resume=folder)
    assert found(again) == found(evaluate(network(), pair(40), suite()))


def test_a_cascade_is_another_question(tmp_path):
    evaluate(network(), pair(), suite(), resume=tmp_path)
    cascade = evaluate(network(), pair(), suite(cascade=True), resume=tmp_path)
    assert found(cascade) == found(evaluate(network(), pair(), suite(cascade=True)))


@pytest.mark.parametrize("budget", [None, 600.0])
def test_a_batch_size_that_is_measured_anew_costs_nothing(tmp_path, monkeypatch, budget):
    """Free memory and speed differ from call to call."""
    monkeypatch.setattr(memory, "batch_size", lambda model, images: 10)
    first = evaluate(network(), pair(), suite(), resume=tmp_path, budget=budget)
    monkeypatch.setattr(memory, "batch_size", lambda model, images: 16)
    ran = stopping(monkeypatch, after=99)
    again = evaluate(network(), pair(), suite(), resume=tmp_path, budget=budget)
    assert not ran
    assert found(again) == found(first)
    assert evaluate(network(), pair(), suite(), resume=tmp_path, batch_size=16).provenance["batch_size"] == 16
    assert len(ran) == 2 * 3


def test_all_processes_go_by_the_plan_of_the_first(monkeypatch):
    """Each measures for itself; batches that differ would overlap or leave gaps."""

    def broadcast(held):
        held[0] = sent[0]

    monkeypatch.setattr(processes, "place", lambda: (1, 2))
    monkeypatch.setattr(processes.distributed, "broadcast_object_list", broadcast)
    sent = [{"batch_size": 7}]
    assert processes.agreed(lambda: pytest.fail("only the first one measures")) == {"batch_size": 7}
    sent = [UsageError("a budget for no image")]
    with pytest.raises(UsageError, match="a budget for no image"):
        processes.agreed(lambda: None)


def test_adversarial_images_are_not_kept_in_memory(tmp_path, monkeypatch):
    held = []
    original = processes.gathered
    monkeypatch.setattr(processes, "gathered", lambda own: held.extend(own) or original(own))
    evaluate(network(), pair(), suite(), batch_size=10, save_adversarial=tmp_path)
    assert len(held) == len(list(tmp_path.iterdir())) == 4
    assert all(part.images is None for one in held for part in one.parts)
