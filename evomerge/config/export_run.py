"""Export candidates of a run, with the facts of the run on their cards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from evomerge.config.build import build_tasks
from evomerge.config.cache import usable_cache
from evomerge.config.held_out import held_out_worker
from evomerge.config.models import OpenModels, open_models
from evomerge.config.parents import parents_of, transformed_of
from evomerge.config.results import RunResults
from evomerge.config.stacks import stacked_of
from evomerge.config.workers import load_derived, read_sources, worker_of
from evomerge.core.arrays import ScoreArray
from evomerge.core.candidate import split_scores
from evomerge.core.picking import pick
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError, RunError
from evomerge.export import (
    AsAdapter,
    CardFacts,
    ExportResult,
    LineageStep,
    ScoreRow,
    Stacked,
    export_adapter,
    export_candidate,
)
from evomerge.runtime.placement import pick_device, threads_per_worker
from evomerge.runtime.worker import MergeInputs, Worker
from evomerge.storage.run_store import RunFolder
from evomerge.storage.score_log import ScoreLog


@dataclass(frozen=True, eq=False)
class Exported:
    """One exported candidate.

    Attributes:
        candidate: Its id.
        result: Folder and digest.
        search: Objective -> value the search measured.
        held_out: Task -> mean held-out score; {} when the config has no held-out examples.
        rescored: Number of per-example scores compared by `verify`; 0 when not asked for.
        constraints: Constraint -> measured value.
        is_feasible: Whether it keeps all constraints.
    """

    candidate: int
    result: ExportResult
    search: Mapping[str, float]
    held_out: Mapping[str, float]
    rescored: int
    constraints: Mapping[str, float]
    is_feasible: bool


def choose(results: RunResults, spec: str) -> list[int]:
    """Return the candidate ids that a `--pick` text means.

    Raises:
        RunError: Nothing has been scored yet.
        ConfigError: The text, an objective or a candidate is unknown.
    """
    if not results.scored:
        raise RunError(f"{results.folder.path}: no candidate has been scored yet")
    ids = pick(results.front(), results.objectives.names, spec)
    for candidate_id in ids:
        results.objectives_of(candidate_id)
    return ids


class Exporter:
    """Exports from one run; opens its models once."""

    def __init__(self, folder: RunFolder) -> None:
        """Open the run's models and check that they are still the same.

        Raises:
            SourceError: A model changed since the run began.
        """
        self.results = RunResults(folder)
        self.config = self.results.config
        self.models = open_models(self.config, known=read_sources(folder))
        self.derived, _ = load_derived(folder, self.models, usable_cache(self.config.runtime.cache))
        self.tasks = build_tasks(self.config)
        self._held_out_worker: Worker | None = None

    def export(
        self, candidate_id: int, out: Path, *, verify: bool, adapter: AsAdapter | None = None
    ) -> Exported:
        """Write one candidate and check that it is what was scored.

        Args:
            candidate_id: Its id.
            out: New folder.
            verify: Load what was written, score it again and compare; for full models.
            adapter: Write a LoRA adapter of the base; what is checked is the merge it is made of.

        Raises:
            ConfigError: `verify` with `adapter`, or the merge is no such adapter.
            RunError: The written tensors, or with `verify` their scores, differ from those
                that were scored; the folder is then left for inspection.
        """
        if verify and adapter is not None:
            raise ConfigError("--verify scores full models; leave it out with --adapter")
        results = self.results
        candidate = results.candidate(candidate_id)
        digest = results.weights_digest(candidate_id)
        held_out = self._score_held_out(candidate_id)
        write: Callable[..., ExportResult] = export_candidate
        if adapter is not None:
            write = partial(export_adapter, rank=adapter.rank)
        recipe, models = self._as_merge(candidate.recipe)
        if adapter is not None and models.stacks:
            raise ConfigError("--adapter: a sequence of layers is no adapter of a model on disk")
        config = {} if models.config is None else {"config": models.config}
        result = write(
            out,
            recipe=recipe,
            space=models.space,
            sources=models.sources,
            derived=self.derived,
            donor=models.donor,
            card=self._card(candidate_id, held_out, stacked_of(models)),
            device=pick_device(self.config.runtime.device),
            **config,
        )
        if result.weights_digest != digest:
            raise RunError(
                f"{out}: the tensors' digest {result.weights_digest} is not that of the scored "
                f"candidate, {digest}. It was scored on another kind of device or with another "
                "version of torch; do not trust its scores."
            )
        rescored = self.rescore(candidate_id, out) if verify else 0
        means = {task: float(values.mean()) for task, values in held_out.items()}
        return Exported(
            candidate_id,
            result,
            results.objectives_of(candidate_id),
            means,
            rescored,
            results.measured_of(candidate_id),
            results.is_feasible(candidate_id),
        )

    def rescore(self, candidate_id: int, exported: Path) -> int:
        """Load an exported folder anew, score it, and compare every example with the run.

        Returns:
            The number of examples compared.

        Raises:
            RunError: A score differs; names task and example.
        """
        runtime = self.config.runtime
        _, models = self._as_merge(self.results.candidate(candidate_id).recipe)
        worker = worker_of(
            MergeInputs(models.space, models.sources, self.derived),
            replace(models, donor=exported),
            self.tasks.search,
            device=runtime.device,
            threads=runtime.threads
            or threads_per_worker(runtime.workers or 1, self.models.space.n_elements),
        )
        again = worker.score()
        event = next(e for e in self.results.scored if int(e["id"]) == candidate_id)
        log = ScoreLog(self.results.folder.scores, sum(self.tasks.sizes.values()))
        row = log.read(int(event["row"]), str(event["scores"]))
        for task, before in split_scores(row, self.tasks.sizes).items():
            differs = np.flatnonzero(again[task] != before)
            if len(differs):
                first = int(differs[0])
                raise RunError(
                    f"{exported}: task {task!r} example {first} scores {again[task][first]:g}, "
                    f"the search measured {before[first]:g} ({len(differs)} examples differ)"
                )
        return len(row)

    def _as_merge(self, recipe: Recipe) -> tuple[Recipe, OpenModels]:
        """Return a recipe and its models; of a sequence of layers the stack that it makes."""
        layers = self.models.layers
        return (recipe, self.models) if layers is None else layers.stacked(recipe)

    def _score_held_out(self, candidate_id: int) -> dict[str, ScoreArray]:
        if not self.tasks.held_out:
            return {}
        if self._held_out_worker is None:
            self._held_out_worker = held_out_worker(self.config, self.models, self.derived)
        self._held_out_worker.install(self.results.candidate(candidate_id).recipe)
        return self._held_out_worker.score()

    def _card(
        self, candidate_id: int, held_out: Mapping[str, ScoreArray], stacked: tuple[Stacked, ...]
    ) -> CardFacts:
        results = self.results
        rows = []
        for objective in results.objectives.items:
            tasks = [task for task in objective.weights if task in held_out]
            whole = len(tasks) == len(objective.weights)
            rows.append(
                ScoreRow(
                    name=objective.name,
                    search=results.objectives_of(candidate_id)[objective.name],
                    n_search=sum(self.tasks.sizes[task] for task in objective.weights),
                    held_out=objective.value(held_out) if whole else None,
                    n_held_out=sum(len(held_out[task]) for task in tasks) if whole else 0,
                )
            )
        return CardFacts(
            title=f"{self.config.name}-{candidate_id}",
            parents=parents_of(self.models.record),
            transformed=(*transformed_of(self.models.virtual), *stacked),
            scores=tuple(rows),
            candidate_id=candidate_id,
            lineage=tuple(self._lineage(candidate_id)),
            n_candidates=len(results.scored),
            algorithm=str(self.config.algorithm["name"]),
            seed=self.config.seed,
            run=self.config.name,
            scored_digest=results.weights_digest(candidate_id),
            notes=tuple(f"Constraint {line}." for line in self._constraint_lines(candidate_id)),
        )

    def _constraint_lines(self, candidate_id: int) -> list[str]:
        return self.results.feasibility.describe(self.results.measured_of(candidate_id))

    def _lineage(self, candidate_id: int) -> list[LineageStep]:
        """Return the candidate and all its ancestors, itself first."""
        steps: list[LineageStep] = []
        queue, seen = [candidate_id], {candidate_id}
        while queue:
            candidate = self.results.candidate(queue.pop(0))
            steps.append(LineageStep(candidate.id, candidate.parents, candidate.origin))
            queue += [parent for parent in candidate.parents if parent not in seen]
            seen.update(candidate.parents)
        return steps


def export_folders(out: Path, ids: Sequence[int], spec: str) -> list[Path]:
    """Return where each candidate goes: `out` itself for one, `out/candidate-ID` for several."""
    if len(ids) == 1 and spec != "all":
        return [out]
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; give a folder")
    return [out / f"candidate-{candidate_id}" for candidate_id in ids]
