"""Bessemer trains image classifiers that hold under perturbation, attacks them, measures what is left, and shows it."""
