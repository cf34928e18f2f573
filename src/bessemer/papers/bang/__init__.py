"""Rozsa, Günther and Boult, "Towards Robust Deep Neural Networks with BANG", 2018, arXiv:1612.00138."""
