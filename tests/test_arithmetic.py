"""Settings of the arithmetic hold inside and nowhere else."""

import torch

from bessemer.arithmetic import exact, flushed


def denormals():
    """How many of a million products are denormal and not zero; the operation runs in all of torch's threads."""
    return (torch.full((1 << 20,), 1e-30) * 1e-10).count_nonzero().item()


def test_denormals_are_zero_inside_and_back_outside_in_every_thread():
    assert denormals() == 1 << 20
    with flushed():
        assert denormals() == 0
        with flushed():
            assert denormals() == 0
        assert denormals() == 0
    assert denormals() == 1 << 20


def test_exact_arithmetic_takes_no_shortcuts_inside():
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with torch.autocast("cpu", torch.bfloat16), exact():
            assert not torch.backends.cudnn.allow_tf32
            assert not torch.backends.cuda.matmul.allow_tf32
            assert torch.backends.cudnn.deterministic
            assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == torch.float32
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
        assert not torch.backends.cudnn.deterministic
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
