"""The front of a run, seen through its per-example scores: as noise allows to tell it apart."""

from __future__ import annotations

from typing import Any

import numpy as np

from evomerge.config.finalists import best_parents
from evomerge.config.results import RunResults
from evomerge.core.arrays import FloatArray, IntArray, ScoreArray
from evomerge.core.candidate import split_scores
from evomerge.core.confidence import standard_errors, unbeaten
from evomerge.core.epsilon_archive import EpsilonArchive
from evomerge.core.intervals import resample
from evomerge.core.pareto import ParetoFront
from evomerge.errors import ConfigError
from evomerge.seeding import generator
from evomerge.storage.score_log import ScoreLog

SMALLEST_EPSILON = 1e-9  # where all candidates agree on every example


def confident_front(results: RunResults, confidence: float) -> ParetoFront:
    """Return the candidates that no other one beats on every objective with this confidence.

    Infeasible ones take part only where no candidate is feasible.

    Args:
        results: The run.
        confidence: In (0.5, 1).

    Raises:
        ConfigError: `confidence` is outside its range.
        JournalError: The scores are damaged.
    """
    if not 0.5 < confidence < 1.0:
        raise ConfigError(f"--confident is {confidence:g}, must be between 0.5 and 1")
    ids, values = _eligible(results)
    if not len(ids):
        return results.front()
    kept = unbeaten(example_scores(results, ids), results.objectives.items, confidence)
    return ParetoFront(ids[kept], values[kept])


def thin_front(results: RunResults) -> ParetoFront:
    """Return the front with one candidate per box of one standard error.

    The width of the boxes is the front's median standard error of each objective.

    Raises:
        JournalError: The scores are damaged.
    """
    front = results.front()
    if not len(front):
        return front
    scores = example_scores(results, front.candidate_ids)
    errors = np.median(standard_errors(scores, results.objectives.items), axis=0)
    archive = EpsilonArchive(np.maximum(errors, SMALLEST_EPSILON))
    for candidate_id, values in zip(front.candidate_ids, front.objectives, strict=True):
        archive.add(int(candidate_id), values)
    return archive.front()


def front_noise(results: RunResults, front: ParetoFront) -> dict[int, dict[str, Any]]:
    """Return how surely the members of a front are what they seem, JSON-ready.

    Candidate -> ``n`` (objective -> examples), ``intervals`` (objective -> 95 % bootstrap interval)
    and ``gains`` (objective -> ``over``, the unmerged model that is best in it, ``gain`` and its
    paired ``interval``; nothing where no such model was scored). Search scores: the best of many
    is too high on average, which no interval shows.

    Raises:
        JournalError: The scores are damaged.
    """
    members = [int(i) for i in front.candidate_ids]
    if not members:
        return {}
    items, parents = results.objectives.items, best_parents(results)
    ids = list(dict.fromkeys([*members, *parents.values()]))
    scores = example_scores(results, np.array(ids, dtype=np.int64))
    draws = resample(scores, items, generator(results.config.seed, "front", "bootstrap"))
    rows = {i: {task: table[row] for task, table in scores.items()} for row, i in enumerate(ids)}
    values = {i: {item.name: item.value(rows[i]) for item in items} for i in ids}
    sizes = {item.name: sum(scores[task].shape[1] for task in item.weights) for item in items}
    found: dict[int, dict[str, Any]] = {}
    for member in members:
        row = ids.index(member)
        found[member] = {
            "n": sizes,
            "intervals": {item.name: draws.interval(row, m) for m, item in enumerate(items)},
            "gains": {
                item.name: {
                    "over": parents[item.name],
                    "gain": values[member][item.name] - values[parents[item.name]][item.name],
                    "interval": draws.difference(row, ids.index(parents[item.name]), m),
                }
                for m, item in enumerate(items)
                if item.name in parents
            },
        }
    return found


def example_scores(results: RunResults, candidate_ids: IntArray) -> dict[str, ScoreArray]:
    """Return task -> (P, N_task) per-example scores of scored candidates, in this order.

    Raises:
        JournalError: A row is missing or damaged.
    """
    sizes = {str(task): int(n) for task, n in results.header["tasks"].items()}
    log = ScoreLog.of(results.folder.scores, results.header)
    events = {int(event["id"]): event for event in results.scored}
    rows = [
        split_scores(log.read(int(event["row"]), str(event["scores"])), sizes)
        for event in (events[int(candidate_id)] for candidate_id in candidate_ids)
    ]
    return {task: np.stack([row[task] for row in rows]) for task in sizes}


def _eligible(results: RunResults) -> tuple[IntArray, FloatArray]:
    """Return ids (P,) and objectives (P, M) of what may be on a front, by rising id."""
    if not results.front_is_feasible:
        front = results.front()
        return front.candidate_ids, front.objectives
    rows = sorted(
        (int(event["id"]), event["objectives"])
        for event in results.scored
        if results.feasibility.is_feasible(np.array(event.get("measured", [])))
    )
    ids = np.array([row[0] for row in rows], dtype=np.int64)
    return ids, np.array([row[1] for row in rows]).reshape(len(rows), len(results.objectives))
