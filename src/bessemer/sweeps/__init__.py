"""Sweeps: many trials of one recipe, each a run, over a grid of settings or in search of the best."""

from bessemer.sweeps.sweep import sweep

__all__ = ["sweep"]
