"""Denormals are flushed inside and nowhere else."""

import torch

from bessemer.denormals import flushed


def product():
    return (torch.tensor([1e-30]) * torch.tensor([1e-10])).item()


def test_denormals_are_zero_inside_and_back_outside():
    assert product() > 0
    with flushed():
        assert product() == 0
        with flushed():
            assert product() == 0
        assert product() == 0
    assert product() > 0
