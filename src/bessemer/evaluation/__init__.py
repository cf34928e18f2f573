"""What is left under attack: verdicts per image, suites, PASS, signs of masked gradients."""

from bessemer.evaluation.evaluate import Stage, evaluate
from bessemer.evaluation.masking import findings
from bessemer.evaluation.similarity import pass_score
from bessemer.evaluation.suites import SUITES, Suite

__all__ = ["SUITES", "Stage", "Suite", "evaluate", "findings", "pass_score"]
