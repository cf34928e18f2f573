"""How far training has stalled: what some lines of a run's metrics say of a few training images, the probe.

Such a line has `iteration`, some numbers on the whole probe, and for every layer some named `MEASURE/LAYER`
(`bessemer.records.movement` reads these). |kappa_i| is the length of sample i's loss gradient at the layer's output;
balanced, it is multiplied by the sample's rate.
"""

from __future__ import annotations

# of the probe
IMAGES = "probe_images"  # how many there are
ACCURACY = "probe_accuracy"  # the share that the network, as it trains, classifies correctly
GAP = "probe_gap"  # quantiles of what lies between the two largest logits of correctly classified samples

# of a layer
CORRECT = "correct_share"  # of the sum of all |kappa_i|: the share of correctly classified samples
CORRECT_BALANCED = "correct_share_balanced"
EFFECTIVE = "effective_share"  # (sum c)^2 / (N sum c^2) with c_i = |kappa_i|
EFFECTIVE_BALANCED = "effective_share_balanced"
ZERO = "zero_share"  # the share of samples with |kappa_i| = 0
NORM = "log10_norm"  # quantiles of log10(|kappa_i| / max_j |kappa_j|) over the others

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def at_quantile(measure: str, quantile: float) -> str:
    """What a line calls one of the quantiles of a measure."""
    return f"{measure}_{100 * quantile:02.0f}"


def course(metrics: list[dict[str, float]], measure: str) -> dict[float, float]:
    """By iteration, a measure of the whole probe."""
    return {line["iteration"]: line[measure] for line in metrics if measure in line}
