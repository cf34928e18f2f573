"""What is left under attack: verdicts per image, suites, PASS, signs of masked gradients."""

from bessemer.evaluation.evaluate import evaluate
from bessemer.evaluation.masking import findings
from bessemer.evaluation.progress import Stage
from bessemer.evaluation.similarity import pass_score
from bessemer.evaluation.suites import SUITES, Suite

__all__ = ["SUITES", "Stage", "Suite", "evaluate", "findings", "pass_score"]
