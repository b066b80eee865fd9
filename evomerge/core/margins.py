"""What margins say of a model's share of right answers, beyond counting them.

The share is a distribution function at 0, known from the margins of T examples. Its smooth estimate
varies less from one sample of examples to the next, and says where to go while no
example changes sides. It is biased towards a half, most where answers are either sure or sure to be
wrong, so it ranks models and is not shown as a score. The width is the reference rule of
density estimates, chosen by measurement (docs/decisions/0006-auto.md).

Shapes: P models, T examples.

Source: Silverman 1986, "Density estimation", equations 3.28 and 3.30 (the width).
"""

from __future__ import annotations

import numpy as np

from evomerge.core.arrays import FloatArray

# The logistic function of so many times x is the normal distribution function of x, within 0.01.
_PROBIT = 1.702


def blur_of(margins: FloatArray) -> float:
    """Return the width to blur (P, T) margins by: 1.06 times their spread times T^(-1/5).

    The spread is the smaller of deviation and interquartile range / 1.349, over models on average.
    0 where most examples of every model are alike: then there is nothing to go by.

    Args:
        margins: NaN where an example was not scored; each model has one that was.
    """
    quartiles = np.nanpercentile(margins, (25.0, 75.0), axis=1)
    spread = np.minimum(np.nanstd(margins, axis=1), (quartiles[1] - quartiles[0]) / 1.349)
    return float(1.06 * spread.mean() * margins.shape[1] ** -0.2)


def blurred(margins: FloatArray, width: float | FloatArray) -> FloatArray:
    """Return by how much each example counts as right, in (0, 1), half at a margin of 0.

    Args:
        margins: (P, T), in nats.
        width: Above 0, or (P, 1) of them: the deviation of a normal distribution around each.
    """
    right: FloatArray = 0.5 + 0.5 * np.tanh(0.5 * _PROBIT * margins / width)
    return right
