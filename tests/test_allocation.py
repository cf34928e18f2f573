"""Freed memory stays in the process: counted in page faults, not in seconds."""

import subprocess
import sys

import pytest

COUNT = """
import resource, sys, torch
from bessemer.allocation import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit(3)
def work():
    for _ in range(50):
        blocks = [torch.ones(750_000) for _ in range(10)]
        del blocks
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    done = subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip("the C library is not glibc")
    return int(done.stdout)


def test_freed_blocks_are_used_again_without_asking_the_system():
    assert faults("kept") < faults("given back") / 10
