"""Worker processes: the same batches however many there are, and a sentence where one fails."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager, suppress
from itertools import count, islice
from pathlib import Path

import pytest
import torch

from bessemer.data import decoded_ahead
from bessemer.errors import DataError

REQUESTS = [(torch.tensor([number, 2 * number, 3]), 7 * number) for number in range(9)]


def answer(index, seed):
    return torch.stack([torch.full((2, 3), place + seed) for place in index.tolist()])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_answers_come_in_the_order_of_the_requests(workers):
    found = list(decoded_ahead.decoded_ahead(answer, iter(REQUESTS), workers))
    assert len(found) == len(REQUESTS)
    for images, request in zip(found, REQUESTS, strict=True):
        assert torch.equal(images, answer(*request))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_generator_that_dropout_draws_from_stays_where_it_was(workers):
    before = torch.random.get_rng_state()
    list(decoded_ahead.decoded_ahead(answer, iter(REQUESTS), workers))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("workers", "most"), [(0, 1), (2, 1 + 2 * decoded_ahead.AHEAD)])
def test_requests_are_taken_only_a_little_ahead(workers, most):
    taken = []

    def endless():
        for number in count():
            taken.append(number)
            yield torch.tensor([number]), 0

    coming = decoded_ahead.decoded_ahead(answer, endless(), workers)
    for number in range(5):
        assert next(coming)[0, 0, 0] == number
        assert len(taken) <= number + most


def test_workers_end_with_the_stream():
    coming = decoded_ahead.decoded_ahead(answer, iter(REQUESTS * 100), 2)
    next(coming)
    ours = multiprocessing.active_children()
    assert len(ours) == 2
    coming.close()
    for process in ours:
        process.join(5)
    assert not [process for process in ours if process.is_alive()]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_worker_refuses_is_refused_in_its_own_words(workers):
    def refuse(index, seed):
        if seed == 14:
            raise DataError("photo.jpg cannot be read")
        return answer(index, seed)

    coming = decoded_ahead.decoded_ahead(refuse, iter(REQUESTS), workers)
    assert len(list(islice(coming, 2))) == 2
    with pytest.raises(DataError, match=r"^photo\.jpg cannot be read$"):
        next(coming)


def test_a_worker_that_dies_ends_the_stream_with_its_reason():
    def die(index, seed):
        if seed == 14:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer(index, seed)

    with pytest.raises(
        DataError, match=r"decoding images in 2 processes failed: DataLoader worker .*; .* set data.workers lower"
    ):
        list(decoded_ahead.decoded_ahead(die, iter(REQUESTS), 2))


def test_under_torchrun_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)), raising=False)
    assert decoded_ahead.spare_cores() == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "5")
    assert decoded_ahead.spare_cores() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "50")
    assert decoded_ahead.spare_cores() == 1


PROGRAM = """
    import multiprocessing, signal, sys
    from itertools import count
    import torch
    from bessemer.data.decoded_ahead import decoded_ahead

    def work(index, seed):
        return torch.ones(2) * sum(n % 7 for n in range(20_000))

    if __name__ == "__main__":
        caught = []
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell begin deaf to it
        end = int(sys.argv[1])
        before = signal.signal(end, lambda *_: caught.append(1))
        coming = decoded_ahead(work, ((torch.tensor([n]), n) for n in count()), 2)
        next(coming)
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        while not caught:
            next(coming)
        for _ in range(20):
            next(coming)
        signal.signal(end, before)
        print("saved", flush=True)
        while True:
            next(coming)
"""


@contextmanager
def job(end=signal.SIGINT):
    """A process in a group of its own that reads a stream, and the numbers of its two workers."""
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(int(end))]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            workers = [int(word) for word in process.stdout.readline().split()]
            assert len(workers) == 2
            yield process, workers
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


only_posix = pytest.mark.skipif(os.name != "posix", reason="signals to process groups are of POSIX systems")


@only_posix
def test_a_schedulers_signal_to_all_processes_lets_the_job_save_first():
    with job(signal.SIGTERM) as (process, _):
        os.killpg(process.pid, signal.SIGTERM)
        assert process.stdout.readline() == "saved\n"


@only_posix
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_meets_a_worker_as_it_starts_does_not_end_it(end):
    program = textwrap.dedent(PROGRAM.partition("        end =")[0]) + textwrap.dedent(f"""
        import os
        signal.signal({int(end)}, signal.SIG_DFL)
        os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), {int(end)}))
        coming = decoded_ahead(work, ((torch.tensor([n]), n) for n in range(4)), 2)
        print(len([*coming]))
    """).replace("\n", "\n    ")
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=False, capture_output=True, text=True)
    assert done.stdout == "4\n", done.stderr


def test_a_program_that_leaves_its_workers_waiting_ends_all_the_same():
    ending = textwrap.dedent(PROGRAM.partition("        while not caught")[0])
    done = subprocess.run([sys.executable, "-c", ending, str(int(signal.SIGTERM))], timeout=60, check=False)
    assert done.returncode == 0


@only_posix
def test_ctrl_c_lets_the_job_save_first_and_leaves_no_worker_behind():
    with job() as (process, workers):
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "saved\n"
        end = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < end:
            os.killpg(process.pid, signal.SIGINT)  # one that comes while Python destroys an object is lost
            time.sleep(1)
        said = process.stderr.read()
        assert process.returncode == -signal.SIGINT
        assert "_worker_loop" not in said, "a worker was interrupted too"
        assert said.rstrip().endswith("KeyboardInterrupt")
        for worker in workers:  # their parent has waited for them
            with pytest.raises(ProcessLookupError):
                os.kill(worker, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers look for their parent every few seconds only")
def test_workers_of_a_killed_job_end_with_it():
    with job() as (process, workers):
        process.kill()
        process.wait()
        end = time.monotonic() + 2
        while any(_runs(worker) for worker in workers) and time.monotonic() < end:
            time.sleep(0.02)
        assert not any(_runs(worker) for worker in workers)


def _runs(worker):
    try:
        return Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
