"""The best members of a run as an ensemble: their folders, and how their vote scores."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.config.export_run import Exported, Exporter
from evomerge.config.finalists import FinalistProgress, finalists
from evomerge.config.held_out import worker_on
from evomerge.config.results import RunResults
from evomerge.errors import ConfigError
from evomerge.evaluation.vote import majority, marks_of, require_votes
from evomerge.export import AsAdapter
from evomerge.storage.atomic import write_atomically

ENSEMBLE_FILE = "ensemble.json"
RULE = {
    "name": "majority",
    "ties": "the answer of the member that comes first",
    "no_answer": "does not vote",
}


@dataclass(frozen=True, eq=False)
class Ensemble:
    """An exported ensemble.

    Attributes:
        members: (K,) what was exported, best first.
        ranked_by: "validation" or "search", whose scores ranked them.
        held_out: Task -> mean test score of the vote; {} without test examples.
        n: Task -> number of test examples.
    """

    members: tuple[Exported, ...]
    ranked_by: str
    held_out: dict[str, float]
    n: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return the content of ensemble.json."""
        return {
            "format": 1,
            "rule": RULE,
            "ranked_by": self.ranked_by,
            "members": [
                {
                    "candidate": member.candidate,
                    "folder": member.result.folder.name,
                    "weight": 1.0,  # of its vote
                    "weights_digest": member.result.weights_digest,
                    "search": dict(member.search),
                    "held_out": dict(member.held_out),
                }
                for member in self.members
            ],
            "held_out": self.held_out,
            "n_held_out": self.n,
        }


def export_ensemble(
    exporter: Exporter,
    k: int,
    out: Path,
    *,
    verify: bool,
    adapter: AsAdapter | None,
    on_scored: FinalistProgress | None = None,
) -> Ensemble:
    """Write the K best candidates of a run, each in a folder of its own, and ensemble.json.

    The best are those of the highest mean over the objectives: on validation examples where there
    are some, else on the search's. Test examples choose nothing; the vote is scored on them.

    Args:
        exporter: Of the run.
        k: K, at least 2.
        out: New folder.
        verify: See `Exporter.export`.
        adapter: See `Exporter.export`.
        on_scored: Called after every candidate scored on validation examples.

    Raises:
        ConfigError: K is too small or too large, or a task's answers cannot be voted on.
        EvaluationError: A member cannot be scored.
    """
    if k < 2:
        raise ConfigError(f"--ensemble is {k}, must be at least 2: one model has no vote")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: exists and is not an empty folder; give a new one")
    for task, evaluator in {**exporter.tasks.search, **exporter.tasks.held_out}.items():
        require_votes(task, evaluator)
    ids = _best(exporter, k, on_scored)
    members = tuple(
        exporter.export(i, out / f"candidate-{i}", verify=verify, adapter=adapter) for i in ids
    )
    ensemble = Ensemble(
        members,
        "search" if exporter.validation is None else "validation",
        _vote(exporter, ids),
        {task: evaluator.n_examples() for task, evaluator in exporter.tasks.held_out.items()},
    )
    text = json.dumps(ensemble.to_json(), indent=1)
    write_atomically(out / ENSEMBLE_FILE, text.encode())
    return ensemble


def _best(exporter: Exporter, k: int, on_scored: FinalistProgress | None) -> list[int]:
    """Return the (K,) ids of the best candidates, best first; the earlier asked among equals."""
    results = exporter.results
    known: dict[str, int] = {}  # digest of the recipe -> candidate: no member votes twice
    for event in results.scored:
        known.setdefault(str(results.asked[int(event["id"])]["digest"]), int(event["id"]))
    pool = sorted(known.values())
    if results.front_is_feasible:
        pool = [i for i in pool if results.is_feasible(i)]
    if len(pool) < k:
        raise ConfigError(
            f"--ensemble is {k}, but {results.folder.path} has {len(pool)} different candidates "
            "to choose from; search longer or take fewer"
        )
    pool.sort(key=lambda i: (-_mean(results, i), i))
    if exporter.validation is None:
        return pool[:k]
    chosen = [i for i in pool if i in {*pool[:k], *finalists(results)}]
    exporter.validation.score(chosen, on_scored)
    means = {i: list(exporter.validation.means(i).values()) for i in chosen}
    return sorted(chosen, key=lambda i: (-sum(means[i]) / len(means[i]), i))[:k]


def _mean(results: RunResults, candidate_id: int) -> float:
    values = results.objectives_of(candidate_id).values()
    return sum(values) / len(values)


def _vote(exporter: Exporter, ids: list[int]) -> dict[str, float]:
    """Return task -> mean test score of the majority's answers."""
    evaluators = exporter.tasks.held_out
    if not evaluators:
        return {}
    worker = worker_on(
        exporter.config, exporter.models, exporter.derived, evaluators, name="ensemble"
    )
    ballots = []
    for candidate_id in ids:
        worker.install(exporter.results.candidate(candidate_id).recipe)
        ballots.append(worker.answers())
    means = {}
    for task, evaluator in evaluators.items():
        answers = majority([ballot[task] for ballot in ballots])
        means[task] = float(marks_of(evaluator, answers).mean(dtype=np.float64))
    return means
