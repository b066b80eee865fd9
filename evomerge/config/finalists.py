"""A second look at a run's best candidates, on examples that the search never scored.

``validation.json`` of a run holds what finalists scored on the validation examples, which choose
among them, ``test.json`` what exports scored on the test examples, which choose nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from evomerge.config.held_out import worker_on
from evomerge.config.models import OpenModels
from evomerge.config.results import RunResults
from evomerge.core.arrays import ScoreArray
from evomerge.core.finalists import chance_of_no_gain, holm, shrunken
from evomerge.core.intervals import resample
from evomerge.core.objective import Objective
from evomerge.core.pareto import ParetoFront
from evomerge.errors import EvaluationError
from evomerge.evaluation.evaluator import Evaluator, example_digests
from evomerge.evaluation.examples import content_digest
from evomerge.merging.derived import Derived
from evomerge.runtime.worker import Worker
from evomerge.seeding import generator
from evomerge.storage.kept_scores import KeptScores

FOUNDER = "founder: "
MEAN = "founder: mean of the models"
VALIDATION, TEST = "validation", "test"

# (finalists done, finalists, candidate) -> None
FinalistProgress = Callable[[int, int, int], None]


def parent_candidates(results: RunResults) -> dict[str, int]:
    """Return source -> the candidate that is this model unmerged, where it was scored."""
    config = results.config
    named = [config.base_model] if config.base_model else []
    known = {f"{FOUNDER}{model.name}": str(model.name) for model in (*named, *config.models)}
    found: dict[str, int] = {}
    for event in results.scored:
        origin = str(results.asked[int(event["id"])]["origin"])
        if origin in known:
            found.setdefault(known[origin], int(event["id"]))
    return found


def best_parents(results: RunResults) -> dict[str, int]:
    """Return objective -> the unmerged model that the search scored best in it; {} without any."""
    parents = sorted(parent_candidates(results).values())
    if not parents:
        return {}
    values = {i: results.objectives_of(i) for i in parents}
    return {name: max(parents, key=lambda i: values[i][name]) for name in results.objectives.names}


def finalists(results: RunResults) -> list[int]:
    """Return the front, the best parents and the mean of the models, by rising id."""
    chosen = {int(i) for i in results.front().candidate_ids} | set(best_parents(results).values())
    for event in results.scored:
        if results.asked[int(event["id"])]["origin"] == MEAN:
            chosen.add(int(event["id"]))
    return sorted(chosen)


class SecondLook:
    """Candidates of a run on one set of examples; what was scored is kept with the run."""

    def __init__(
        self,
        results: RunResults,
        models: OpenModels,
        derived: Derived,
        evaluators: Mapping[str, Evaluator],
        *,
        part: str,
    ) -> None:
        """Read what is kept; nothing is scored yet.

        Args:
            results: The run.
            models: Its models.
            derived: Its Gram matrices.
            evaluators: Task -> evaluator of this part.
            part: `VALIDATION` or `TEST`.

        Raises:
            RunError: The kept scores are damaged or of other examples.
        """
        self.part = part
        self.results = results
        self._models, self._derived, self._evaluators = models, derived, evaluators
        self.sizes = {task: evaluator.n_examples() for task, evaluator in evaluators.items()}
        digests = {task: example_digests(evaluator) for task, evaluator in evaluators.items()}
        examples = content_digest([results.config.replay_part()["tasks"], digests])
        path = results.folder.path / f"{part}.json"
        self.kept = KeptScores(path, self.sizes, examples)
        self.objectives = tuple(
            item for item in results.objectives.items if set(item.weights) <= set(evaluators)
        )

    @cached_property
    def _worker(self) -> Worker:
        config = self.results.config
        return worker_on(config, self._models, self._derived, self._evaluators, name=self.part)

    def score(self, ids: Sequence[int], on_scored: FinalistProgress | None = None) -> None:
        """Score those candidates that are not kept, and keep each at once.

        Raises:
            EvaluationError: One cannot be scored; the others are kept.
        """
        missing = [i for i in dict.fromkeys(ids) if i not in self.kept.ids]
        for done, candidate_id in enumerate(missing, 1):
            candidate = self.results.candidate(candidate_id)
            try:
                self._worker.install(candidate.recipe)
                self.kept.add(candidate_id, self._worker.score())
            except EvaluationError as error:
                raise EvaluationError(
                    f"candidate {candidate_id} cannot be scored on {self.part} examples: {error}"
                ) from error
            self.kept.write(self.figures())
            self.results.folder.published(self.kept.path)
            if on_scored is not None:
                on_scored(done, len(missing), candidate_id)

    @property
    def n_looked_at(self) -> int:
        """How many merges, unmerged models left out, were scored here in the life of the run."""
        return len(set(self.kept.ids) - set(parent_candidates(self.results).values()))

    def means(self, candidate_id: int) -> dict[str, float]:
        """Return objective -> value of a kept candidate, of objectives measured here."""
        scores = self.kept.scores(candidate_id)
        return {item.name: item.value(scores) for item in self.objectives}

    def n(self, objective: Objective) -> int:
        """Return how many examples an objective is measured on."""
        return sum(self.sizes[task] for task in objective.weights)

    def figures(self) -> dict[str, Any]:
        """Return what the kept scores say, JSON-ready; candidates are keyed by id.

        Of each candidate and objective: the mean, its 95 % bootstrap interval, the shrunken mean
        (see `core.finalists`), and the gain on the parent that the search scored best in it:
        paired interval, and the p-value of no gain, Holm-adjusted over the candidates.
        """
        ids = self.kept.ids
        names = [item.name for item in self.objectives]
        rows = {i: self.kept.scores(i) for i in ids}
        figures: dict[str, Any] = {
            "n": {item.name: self.n(item) for item in self.objectives},
            "candidates": {str(i): self.means(i) for i in ids},
        }
        if not ids or not names:
            return figures
        tables: dict[str, ScoreArray] = {
            task: np.stack([rows[i][task] for i in ids]) for task in self.sizes
        }
        rng = generator(self.results.config.seed, self.part, "bootstrap")
        draws = resample(tables, self.objectives, rng)
        drawn = shrunken(tables, self.objectives)
        figures["intervals"] = {
            str(i): {name: draws.interval(row, m) for m, name in enumerate(names)}
            for row, i in enumerate(ids)
        }
        figures["shrunken"] = {
            str(i): {name: float(drawn[row, m]) for m, name in enumerate(names)}
            for row, i in enumerate(ids)
        }
        gains: dict[str, dict[str, Any]] = {str(i): {} for i in ids}
        parents = best_parents(self.results)
        unmerged = set(parent_candidates(self.results).values())
        for m, item in enumerate(self.objectives):
            parent = parents.get(item.name)
            others = [i for i in ids if i not in unmerged]
            if parent not in ids:
                continue
            chances = holm([chance_of_no_gain(rows[i], rows[parent], item) for i in others])
            for i, chance in zip(others, chances, strict=True):
                gains[str(i)][item.name] = {
                    "over": parent,
                    "gain": item.value(rows[i]) - item.value(rows[parent]),
                    "interval": draws.difference(ids.index(i), ids.index(parent), m),
                    "p": chance,
                }
        figures["gains"] = gains
        return figures

    def front(self, ids: Sequence[int]) -> ParetoFront:
        """Return those kept candidates that no other of them beats in every objective here."""
        values = np.array([list(self.means(i).values()) for i in ids])
        return ParetoFront.of(ids, values.reshape(len(ids), len(self.objectives)))


def choosable(results: RunResults) -> list[int]:
    """Return the finalists that may be chosen: where some keep all constraints, only those."""
    ids = finalists(results)
    if results.front_is_feasible:
        ids = [i for i in ids if results.is_feasible(i)]
    return ids
