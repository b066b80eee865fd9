"""Two runs on the same examples side by side.

Shapes: P candidates, N examples of a task, M objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.config.build import header_differences
from evomerge.config.front_views import example_scores
from evomerge.config.results import RunResults
from evomerge.config.schema import without_servers
from evomerge.core.arrays import FloatArray
from evomerge.core.constrained_front import ConstrainedFront
from evomerge.core.hypervolume_estimate import estimate_hypervolume
from evomerge.core.intervals import Resampled, resample
from evomerge.core.pareto import frozen_reference
from evomerge.core.picking import pick
from evomerge.errors import RunError
from evomerge.report.timing import read_timing
from evomerge.seeding import generator

_MARKS = (0.25, 0.5, 0.75, 1.0)  # of the cost of the cheaper run


def compare_runs(first: RunResults, second: RunResults) -> dict[str, Any]:
    """Return both runs' best candidates, knees and growth, JSON-ready.

    Cost is counted in evaluations of all examples. Hypervolumes are over one reference, that of
    both runs' founders together. Differences are first minus second, with 95 % intervals by a
    paired bootstrap over the examples.

    Raises:
        RunError: A run has no scores, or they were scored on other examples or objectives; says
            what differs.
        JournalError: The scores are damaged.
    """
    for results in (first, second):
        if not results.scored:
            raise RunError(f"{results.folder.path}: no candidate has been scored yet")
    _refuse_unlike(first, second)
    founders = np.concatenate([_founder_values(first), _founder_values(second)])
    reference = frozen_reference(founders)
    cheaper = min(first.done, second.done)
    marks = [share * cheaper for share in _MARKS]
    return {
        "objectives": list(first.objectives.names),
        "reference": reference.tolist(),
        "runs": [_run_facts(results, reference, marks) for results in (first, second)],
        "differences": _differences(first, second),
    }


def _refuse_unlike(first: RunResults, second: RunResults) -> None:
    changed = header_differences(_scored_on(first), _scored_on(second))
    if changed:
        unlike = "; ".join(
            line.replace(" was ", " is ", 1).replace(", is ", " here, there ", 1)
            for line in changed[:4]
        )
        raise RunError(
            f"{first.folder.path} and {second.folder.path} were not scored alike: {unlike}. "
            "Only runs on the same tasks, examples and objectives can be compared."
        )


def _scored_on(results: RunResults) -> Mapping[str, Any]:
    """Return what scores depend on beside the model; files by their digests, not their paths."""
    header = results.header
    files = {str(path): str(digest) for path, digest in header["data"].items()}
    tasks = without_servers(header["config"]["tasks"])
    return {
        "tasks": {
            task["name"]: {
                "examples": header["tasks"][task["name"]],
                "evaluator": _with_digests(task["evaluator"], files),
            }
            for task in tasks
        },
        "objectives": {item.name: dict(item.weights) for item in results.objectives.items},
        "constraints": [str(item) for item in results.objectives.constraints],
    }


def _with_digests(value: Any, files: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_digests(item, files) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_digests(item, files) for item in value]
    return files.get(value, value) if isinstance(value, str) else value


def _founder_values(results: RunResults) -> FloatArray:
    n_founders = max(int(results.header.get("founders", 0)), 1)
    scored = results.scored
    own = [event["objectives"] for event in scored if int(event["id"]) < n_founders]
    return np.array(own or [scored[0]["objectives"]], dtype=np.float64)


def _run_facts(
    results: RunResults, reference: FloatArray, marks: Sequence[float]
) -> dict[str, Any]:
    front = results.front()
    return {
        "run": results.folder.where,
        "algorithm": results.config.algorithm["name"],
        "cost": results.done,
        "seconds": read_timing(results.folder.events).total,
        "candidates": len(results.scored),
        "failed": results.n_failed,
        "front": len(front),
        "best": {
            name: {"candidate": best, "value": results.objectives_of(best)[name]}
            for name, best in _best_ids(results).items()
        },
        "knee": _knee(results),
        "curve": _curve(results, reference, [*marks, results.done]),
    }


def _best_ids(results: RunResults) -> dict[str, int]:
    front = results.front()
    rows = enumerate(results.objectives.names)
    return {name: int(front.candidate_ids[front.objectives[:, m].argmax()]) for m, name in rows}


def _knee(results: RunResults) -> dict[str, Any]:
    (candidate,) = pick(results.front(), results.objectives.names, "knee")
    return {"candidate": candidate, "values": results.objectives_of(candidate)}


def _curve(
    results: RunResults, reference: FloatArray, marks: Sequence[float]
) -> list[dict[str, Any]]:
    """Return best values and hypervolume when the cost first reaches each mark."""
    constraints = results.objectives.constraints
    front = ConstrainedFront(constraints, n_objectives=len(results.objectives))
    front.set_reference(reference)
    n_examples = sum(results.header["tasks"].values())
    rows: list[dict[str, Any]] = []
    cost = 0.0
    waiting = sorted(set(marks))
    for event in results.told:
        asked = results.asked[int(event["id"])]
        part = asked.get("examples")
        cost += 1.0 if part is None else int(part.split(":")[0]) / n_examples
        if "objectives" in event:
            values = np.array(event["objectives"], dtype=np.float64)
            measured = np.array(event.get("measured", []))
            front.add(int(event["id"]), values, measured, str(asked["origin"]))
        while waiting and cost >= waiting[0] - 1e-9:
            rows.append(_moment(front, waiting.pop(0), results.objectives.names))
    return rows


def _moment(front: ConstrainedFront, cost: float, names: Sequence[str]) -> dict[str, Any]:
    members = front.front().objectives
    if not len(members):
        return {"cost": cost, "best": dict.fromkeys(names), "hypervolume": None}
    best = dict(zip(names, members.max(axis=0).tolist(), strict=True))
    return {"cost": cost, "best": best, "hypervolume": _hypervolume(front)}


def _hypervolume(front: ConstrainedFront) -> float | None:
    """Return it exactly, or from 4 objectives on an estimate that is the same every time."""
    exact = front.hypervolume()
    if exact is not None or front.reference is None:
        return exact
    members = front.front().objectives
    return estimate_hypervolume(members, front.reference, generator(0, "compare")).value


def _differences(first: RunResults, second: RunResults) -> list[dict[str, Any]]:
    """Return the differences of the best of each objective, and of the knees on all of them."""
    names = first.objectives.names
    here, there = _best_ids(first), _best_ids(second)
    pairs = [(f"best {name}", name, here[name], there[name]) for name in names]
    knees = _knee(first)["candidate"], _knee(second)["candidate"]
    pairs += [(f"knee {name}", name, *knees) for name in names]
    ids = sorted({pair[2] for pair in pairs}), sorted({pair[3] for pair in pairs})
    drawn = _resampled(first, second, ids)
    rows = []
    for label, name, mine, other in pairs:
        row, column = ids[0].index(mine), len(ids[0]) + ids[1].index(other)
        low, high = drawn.difference(row, column, names.index(name))
        value = first.objectives_of(mine)[name] - second.objectives_of(other)[name]
        rows.append(
            {
                "what": label,
                "objective": name,
                "candidates": [mine, other],
                "difference": value,
                "low": low,
                "high": high,
            }
        )
    return rows


def _resampled(
    first: RunResults, second: RunResults, ids: tuple[list[int], list[int]]
) -> Resampled:
    """Return objectives over resamples: rows are the first run's candidates, then the second's."""
    mine = example_scores(first, np.array(ids[0]))
    other = example_scores(second, np.array(ids[1]))
    scores = {task: np.concatenate([mine[task], other[task]]) for task in mine}
    return resample(scores, first.objectives.items, generator(0, "compare"))
