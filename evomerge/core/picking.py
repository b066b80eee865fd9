"""Pick candidates off a front by a short text: `knee`, `best:math`, `max(math) s.t. ja>=0.7`.

Shapes: F candidates on the front, M objectives, all maximised.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from evomerge.core.arrays import FloatArray
from evomerge.core.pareto import ParetoFront
from evomerge.core.pick_condition import EXAMPLE, parse_wish
from evomerge.errors import ConfigError, nearest

RHO = 1e-3  # weight of the sum in the augmented Tchebycheff distance
RULES = (
    "knee",
    "champion",
    "best:<objective>",
    "weights:a=1,b=2",
    EXAMPLE,
    "all",
    "candidate:<id>",
)


def pick(front: ParetoFront, names: Sequence[str], spec: str) -> list[int]:
    """Return the candidate ids that `spec` asks for.

    ====================  ==============================================================
    ``knee``              the best compromise: M = 2, farthest above the line between the
                          extremes; M > 2, the largest trade-off (see `_trade_off`)
    ``champion``          the highest mean of the objectives
    ``best:<objective>``  the highest value of one objective
    ``weights:a=1,b=2``   nearest to the ideal point by augmented Tchebycheff distance on
                          the normalised front; objectives not named weigh 0
    ``max(a) s.t. b>=1``  the highest value of one objective of those that keep the limits
    ``all``               the whole front
    ``candidate:<id>``    that candidate, on the front or not: the caller knows which exist
    ====================  ==============================================================

    Equally good candidates: the one with the larger sum of normalised objectives, then of the
    objectives as they are (on a front of two nothing else tells them apart), then the smaller id.

    Args:
        front: (F,) ids and (F, M) objectives.
        names: (M,) names of the objectives.
        spec: One of the table above.

    Raises:
        ConfigError: The rule, an objective or a number is wrong, the front is empty, or nothing on
            it keeps the limits.

    Source: algorithms.md §9 (Pareto machinery).
    """
    if re.match(r"\s*max\s*\(", spec):
        return [_best_within(front, names, spec)]
    found = re.fullmatch(r"([^\s:]*)[\s:]*(.*)", spec.strip(), re.DOTALL)
    rule, rest = found.groups() if found else (spec, "")
    if rule == "candidate":
        return [_candidate_id(rest, spec)]
    if rule not in ("knee", "champion", "best", "weights", "all"):
        raise ConfigError(
            f"pick {spec!r}: {rule!r} is not a way to pick."
            f"{nearest(rule, ('knee', 'champion', 'best', 'weights', 'max', 'all', 'candidate'))} "
            f"Known: {', '.join(RULES)}."
        )
    if rule in ("knee", "champion", "all") and rest:
        raise ConfigError(f"pick {spec!r}: {rule!r} takes nothing after it")
    if front.objectives.shape[1:] != (len(names),):
        raise ValueError(f"{len(names)} names for objectives of shape {front.objectives.shape}")
    if rule == "best":
        merit_of = _index(rest, names, spec)
    elif rule == "weights":
        weights = _weights(rest, names, spec)
    if not len(front):
        raise ConfigError(f"pick {spec!r}: the front is empty, no candidate has been scored")
    if rule == "all":
        return sorted(int(i) for i in front.candidate_ids)
    by_id = np.argsort(front.candidate_ids, kind="stable")
    ids, objectives = front.candidate_ids[by_id], front.objectives[by_id]
    unit = _normalised(objectives)
    if rule == "champion":
        merit = objectives.mean(axis=1)
    elif rule == "best":
        merit = objectives[:, merit_of]
    elif rule == "weights":
        gap = unit.max(axis=0) - unit
        merit = -((weights * gap).max(axis=1) + RHO * gap.sum(axis=1))
    elif len(names) <= 2:
        # The extremes of a normalised front are (1, 0) and (0, 1): signed distance to x + y = 1.
        merit = unit.sum(axis=1)
    else:
        merit = _trade_off(unit)
    if rule != "best":
        merit = merit.round(12)  # what differs in the last bits only is a tie on another machine
    totals = (-table.sum(axis=1).round(12) for table in (objectives, unit))
    order = np.lexsort((ids, *totals, -merit))
    return [int(ids[order[0]])]


def _best_within(front: ParetoFront, names: Sequence[str], spec: str) -> int:
    wish = parse_wish(spec, names)
    if not len(front):
        raise ConfigError(f"pick {spec!r}: the front is empty, no candidate has been scored")
    kept = wish.keeps(front.objectives)
    if not kept.any():
        reach = (
            f"{names[limit.index]} is {front.objectives[:, limit.index].min():.4g} to "
            f"{front.objectives[:, limit.index].max():.4g}"
            for limit in wish.limits
        )
        raise ConfigError(
            f"pick {spec!r}: nothing on the front keeps the limits; on it {', '.join(reach)}"
        )
    unit = _normalised(front.objectives)
    ids, merit = front.candidate_ids[kept], front.objectives[kept, wish.index]
    order = np.lexsort((ids, -unit[kept].sum(axis=1).round(12), -merit))
    return int(ids[order[0]])


def _trade_off(unit: FloatArray) -> FloatArray:
    """Return (F,) the least gain per loss of moving to each point from one of its neighbours.

    mu_i = min over j of sum max(0, f_i - f_j) / sum max(0, f_j - f_i), over the 2 M nearest
    points; nothing lost (equal points) counts as infinity, and so does a lone point.

    Args:
        unit: (F, M) normalised objectives.

    Source: Rachmawati & Srinivasan 2009, IEEE TEVC 13(4); neighbours by count, not radius.
    """
    n, n_objectives = unit.shape
    result = np.full(n, np.inf)
    for i in range(n):
        away = np.square(unit - unit[i]).sum(axis=1)
        near = np.argsort(away.round(12), kind="stable")
        near = near[near != i][: 2 * n_objectives]
        difference = unit[i] - unit[near]
        gain = np.maximum(difference, 0.0).sum(axis=1)
        loss = np.maximum(-difference, 0.0).sum(axis=1)
        ratio = np.divide(gain, loss, out=np.full(len(near), np.inf), where=loss > 0.0)
        result[i] = ratio.min(initial=np.inf)
    return result


def _normalised(objectives: FloatArray) -> FloatArray:
    low = objectives.min(axis=0)
    width = objectives.max(axis=0) - low
    unit: FloatArray = (objectives - low) / np.where(width > 0.0, width, 1.0)
    return unit


def _index(name: str, names: Sequence[str], spec: str) -> int:
    if name not in names:
        raise ConfigError(
            f"pick {spec!r}: {name!r} is not an objective.{nearest(name, names)} "
            f"Objectives: {', '.join(names)}."
        )
    return list(names).index(name)


def _weights(text: str, names: Sequence[str], spec: str) -> FloatArray:
    """Return (M,) weights that sum to 1."""
    weights = np.zeros(len(names))
    seen: set[str] = set()
    for part in text.split(","):
        # The last "=": an objective's name may hold one.
        name, _, number = (piece.strip() for piece in part.rpartition("="))
        if not name:
            raise ConfigError(f"pick {spec!r}: expected name=number, got {part.strip()!r}")
        index = _index(name, names, spec)
        if name in seen:
            raise ConfigError(f"pick {spec!r}: {name!r} is given twice")
        seen.add(name)
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0.0):
            raise ConfigError(f"pick {spec!r}: the weight of {name!r} is {number!r}, must be >= 0")
        weights[index] = value
    if not weights.sum() > 0.0:
        raise ConfigError(f"pick {spec!r}: at least one weight must be above 0")
    weights /= weights.max()  # first: the sum of huge weights may overflow
    weights /= weights.sum()
    return weights


def _candidate_id(text: str, spec: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"pick {spec!r}: {text!r} is not a candidate id, expected a number")
    return int(text)
