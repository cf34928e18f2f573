"""How far the neurons have moved from where they began: what some lines of a run's metrics say, layer by layer.

Such a line has `iteration` and, for every layer, up to three numbers named `MEASURE/LAYER`. w is the weight of a neuron
where training began in a run that started from another one, w⁰ the random weight before any training, and w′ the
present one.
"""

from __future__ import annotations

START = "theta_start"  # the median over the layer's neurons of theta(w, w′)
OUTWEIGHS = "outweighs_start"  # the share of its neurons with beta > 0 and |beta w′| > |v|, where v = w - beta w′
INITIAL = "theta_initial"  # the median of theta(w⁰, w′)


def named(measure: str, layer: str) -> str:
    """What a line calls the measure of a layer."""
    return f"{measure}/{layer}"


def moments(metrics: list[dict[str, float]], measure: str) -> dict[float, dict[str, float]]:
    """By iteration, the measure of every layer, in the order of the network; what has none is left out."""
    found: dict[float, dict[str, float]] = {}
    for line in metrics:
        layers = {
            key.removeprefix(f"{measure}/"): value for key, value in line.items() if key.startswith(f"{measure}/")
        }
        if layers:
            found[line["iteration"]] = layers
    return found
