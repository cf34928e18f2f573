"""Large blocks come from memory that the process keeps: asked of the C library itself, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

import bessemer

# loaded by path: nothing else has used the allocator yet
LOOK = """
import ctypes, importlib.util, sys
spec = importlib.util.spec_from_file_location("allocation", sys.argv[1])
allocation = importlib.util.module_from_spec(spec)
spec.loader.exec_module(allocation)
libc = ctypes.CDLL("libc.so.6")
if not hasattr(libc, "mallinfo2"):
    sys.exit(3)
if sys.argv[2] == "kept" and not allocation.keep_freed_memory():
    sys.exit(4)
class Info(ctypes.Structure):
    _fields_ = [(f"field{i}", ctypes.c_size_t) for i in range(10)]
libc.mallinfo2.restype = Info
libc.malloc.restype = ctypes.c_void_p
before = libc.mallinfo2().field3  # blocks that the system was asked for one by one
assert libc.malloc(ctypes.c_size_t(20 << 20))
print(libc.mallinfo2().field3 - before)
"""


def asked_of_the_system(how):
    path = Path(bessemer.__file__).parent / "allocation.py"
    done = subprocess.run([sys.executable, "-c", LOOK, str(path), how], capture_output=True, text=True, check=False)
    if done.returncode == 3 or "libc.so.6" in done.stderr:
        pytest.skip("the C library is not glibc 2.33 or newer")
    return int(done.stdout)


def test_large_blocks_are_no_longer_asked_of_the_system_one_by_one():
    assert asked_of_the_system("as it is") == 1
    assert asked_of_the_system("kept") == 0
