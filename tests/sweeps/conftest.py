"""A real PostgreSQL for a test module, and small sweeps of the embedded digits."""

import os
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bessemer.arithmetic import flushed
from bessemer.records.sweep import RUNNING
from bessemer.sweeps.study import Study


@pytest.fixture(autouse=True)
def _denormals():
    """Training in this process flushes denormals: not for the tests after these."""
    with flushed():
        yield


@pytest.fixture
def same_weights():
    """Whether two runs ended in the same weights, bit for bit."""

    def asked(one, other):
        mine, theirs = (load_file(sorted((Path(run) / "checkpoints").glob("step-*"))[-1]) for run in (one, other))
        names = [name for name in mine if name.startswith("weights/")]
        return bool(names) and all(torch.equal(mine[name], theirs[name]) for name in names)

    return asked


@pytest.fixture
def claimed_by_several(tmp_path):
    """The runs that four workers claimed, each in a thread with connections of its own, until none was left."""

    def claiming(storage, trials):
        runs, begun = [], threading.Barrier(4)

        def work():
            with Study(storage, "claims", tmp_path / "s") as study:
                study.begin({"first": {}}, [True])
                study.reserve(trials)
                begun.wait()
                while (claim := study.claim()) is not None:
                    runs.append(claim.run)
                study.take_up()  # of workers that live, nothing
                assert all(trial.state == RUNNING for trial in study.trials())
                begun.wait()

        with ThreadPoolExecutor(4) as pool:
            for each in [pool.submit(work) for _ in range(4)]:
                each.result()
        return sorted(runs)

    return claiming


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory):
    """The address of a database on a free loopback port, with a password, gone after the module."""
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL server: install it (Debian: apt install postgresql) to test sweeps across machines")
    folder = tmp_path_factory.mktemp("postgresql")
    account = []
    if os.geteuid() == 0:  # as which PostgreSQL refuses to run
        if shutil.which("setpriv") is None:
            pytest.skip(
                "PostgreSQL does not run as root: run the tests as another user, or install util-linux's setpriv"
            )
        account = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        for each in (folder, *folder.parents[:3]):
            os.chmod(each, os.stat(each).st_mode | 0o011)
        shutil.chown(folder, "nobody", "nogroup")
    environment = {**os.environ, "LC_ALL": "C", "HOME": str(folder)}
    secret = folder / "password"
    secret.write_text("s3cret\n")
    secret.chmod(0o644)
    made = subprocess.run(
        [*account, programs / "initdb", "-D", folder / "data", "-U", "bessemer", "-A", "scram-sha-256", "-N",
         f"--pwfile={secret}"],
        env=environment, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off", "port": str(port)}
    settings = [f"-c{key}={value}" for key, value in options.items()]
    server = subprocess.Popen(
        [*account, programs / "postgres", "-D", folder / "data", *settings],
        env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(200):
            with socket.socket() as asking:
                if asking.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"postgresql://bessemer:s3cret@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(timeout=20)


def _programs():
    """The folder with PostgreSQL's programs; None where there is none."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None)
