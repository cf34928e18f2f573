"""However many images there are, an evaluation holds one batch of them."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import torch
import bessemer as bs
from bessemer.evaluation import Suite

torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.AvgPool2d(16), torch.nn.Flatten(), torch.nn.Linear(48, 4))

def source(count):
    for number in range(count):
        images = torch.rand(20, 3, 64, 64, generator=torch.Generator().manual_seed(number))
        yield images, model(images).argmax(1)

suite = Suite("small", {"FGSM": bs.attacks.FGSM(bs.Linf(0.01)), "noise": bs.attacks.UniformNoise(bs.Linf(0.01))})
found = bs.evaluate(model, source(int(sys.argv[1])), suite)
assert len(found) == 20 * int(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak(batches):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(batches)],
        check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is counted in kB on Linux only")
def test_peak_memory_does_not_grow_with_the_number_of_images():
    """2,500 images more, 117 MiB of floats, may cost what their verdicts take: 12 MiB at the very most."""
    few, many = peak(25), peak(150)
    assert many - few < 12, f"{few} MiB and {many} MiB"
