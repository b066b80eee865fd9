"""Export candidates of a run, with the facts of the run on their cards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.config.cache import usable_cache
from evomerge.config.champion import run_champion
from evomerge.config.finalists import (
    FOUNDER,
    TEST,
    VALIDATION,
    FinalistProgress,
    SecondLook,
    best_parents,
    choosable,
    finalists,
)
from evomerge.config.front_views import example_scores
from evomerge.config.models import OpenModels, open_models
from evomerge.config.parents import parents_of, transformed_of
from evomerge.config.results import RunResults
from evomerge.config.stacks import stacked_of
from evomerge.config.tasks import build_tasks
from evomerge.config.workers import load_derived, read_sources, worker_of
from evomerge.core.candidate import split_scores
from evomerge.core.intervals import resample
from evomerge.core.picking import pick
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError, RunError
from evomerge.evaluation.evaluator import Evaluator
from evomerge.export import (
    AsAdapter,
    CardFacts,
    ExportResult,
    Gain,
    LineageStep,
    ScoreRow,
    Stacked,
    export_adapter,
    export_candidate,
)
from evomerge.runtime.placement import pick_device, threads_per_worker
from evomerge.runtime.worker import MergeInputs
from evomerge.seeding import generator
from evomerge.storage.run_store import RunFolder
from evomerge.storage.score_log import ScoreLog


@dataclass(frozen=True, eq=False)
class Exported:
    """One exported candidate.

    Attributes:
        candidate: Its id.
        result: Folder and digest.
        search: Objective -> value the search measured.
        held_out: Task -> mean score on its test examples; {} when the config has none.
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
    if spec.strip() == "champion":
        return [run_champion(results)]
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
        self.validation = self._look(VALIDATION, self.tasks.validation)
        self.test = self._look(TEST, self.tasks.held_out)

    def _look(self, part: str, evaluators: Mapping[str, Evaluator]) -> SecondLook | None:
        if not evaluators:
            return None
        return SecondLook(self.results, self.models, self.derived, evaluators, part=part)

    def choose(self, spec: str, on_scored: FinalistProgress | None = None) -> list[int]:
        """Return the candidate ids that a `--pick` text means.

        Where tasks have validation examples, those choose: finalists are scored on them, once.

        Raises:
            RunError: Nothing has been scored yet.
            ConfigError: The text, an objective or a candidate is unknown.
            EvaluationError: A finalist cannot be scored.
        """
        ids = choose(self.results, spec)
        if self.validation is None or spec.strip().startswith("candidate"):
            return ids
        self.validation.score(finalists(self.results), on_scored)
        front = self.validation.front(choosable(self.results))
        return pick(front, self.results.objectives.names, spec)

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
            ConfigError: `verify` with `adapter` or with tasks that a server scores, or the merge
                is no such adapter.
            RunError: The written tensors, or with `verify` their scores, differ from those
                that were scored; the folder is then left for inspection.
        """
        if verify and adapter is not None:
            raise ConfigError("--verify scores full models; leave it out with --adapter")
        served = [task for task, e in self.tasks.search.items() if e.auto_class is None]
        if verify and served:
            raise ConfigError(
                f"--verify scores the written model here, and task {served[0]!r} is scored by a "
                "server; leave it out"
            )
        results = self.results
        candidate = results.candidate(candidate_id)
        digest = results.weights_digest(candidate_id)
        if self.test is not None:
            self.test.score([candidate_id, *best_parents(results).values()])
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
            card=self._card(candidate_id, stacked_of(models)),
            device=pick_device(self.config.runtime.device),
            **config,
        )
        if digest and result.weights_digest != digest:  # servers need not say
            raise RunError(
                f"{out}: the tensors' digest {result.weights_digest} is not that of the scored "
                f"candidate, {digest}. It was scored on another kind of device or with another "
                "version of torch; do not trust its scores."
            )
        rescored = self.rescore(candidate_id, out) if verify else 0
        held_out = {} if self.test is None else self.test.kept.scores(candidate_id)
        names = [task.name for task in self.config.tasks if task.name in held_out]
        means = {name: float(held_out[name].mean(dtype=np.float64)) for name in names}
        return Exported(
            candidate_id,
            result,
            results.objectives_of(candidate_id),
            means,
            rescored,
            results.measured_of(candidate_id),
            results.is_feasible(candidate_id),
        )

    def validation_of(self, candidate_id: int) -> dict[str, float]:
        """Return objective -> validation score of a finalist; {} where it has none."""
        if self.validation is None or candidate_id not in self.validation.kept.ids:
            return {}
        return self.validation.means(candidate_id)

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
        log = ScoreLog.of(self.results.folder.scores, self.results.header)
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

    def _score_rows(self, candidate_id: int) -> tuple[ScoreRow, ...]:
        """Return what is known of a candidate, one row per objective."""
        results = self.results
        items = results.objectives.items
        searched = example_scores(results, np.array([candidate_id], dtype=np.int64))
        draws = resample(searched, items, generator(self.config.seed, "card", "bootstrap"))
        parts = {"validation": _figures(self.validation), "held_out": _figures(self.test)}
        rows = []
        for index, item in enumerate(items):
            row = ScoreRow(
                name=item.name,
                search=results.objectives_of(candidate_id)[item.name],
                n_search=sum(self.tasks.sizes[task] for task in item.weights),
                search_interval=draws.interval(0, index),
            )
            for part, figures in parts.items():
                means = figures["candidates"].get(str(candidate_id), {})
                if item.name not in means:
                    continue
                known = {
                    part: means[item.name],
                    f"n_{part}": figures["n"][item.name],
                    f"{part}_interval": figures["intervals"][str(candidate_id)][item.name],
                }
                if part == "validation":
                    known["shrunken"] = figures["shrunken"][str(candidate_id)][item.name]
                gain = figures["gains"][str(candidate_id)].get(item.name)
                if gain is not None:
                    known["gain"] = self._gain(gain, {"held_out": TEST}.get(part, part))
                row = replace(row, **known)
            rows.append(row)
        return tuple(rows)

    def _gain(self, figures: Mapping[str, Any], on: str) -> Gain:
        origin = str(self.results.asked[figures["over"]]["origin"])
        return Gain(
            over=origin.removeprefix(FOUNDER),
            value=figures["gain"],
            interval=figures["interval"],
            p=figures["p"],
            on=on,
        )

    def _card(self, candidate_id: int, stacked: tuple[Stacked, ...]) -> CardFacts:
        results = self.results
        return CardFacts(
            title=f"{self.config.name}-{candidate_id}",
            parents=parents_of(self.models.record),
            transformed=(*transformed_of(self.models.virtual), *stacked),
            scores=self._score_rows(candidate_id),
            candidate_id=candidate_id,
            lineage=tuple(self._lineage(candidate_id)),
            n_candidates=len(results.scored),
            n_tested=0 if self.test is None else self.test.n_looked_at,
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


def _figures(look: SecondLook | None) -> Mapping[str, Any]:
    return {"candidates": {}} if look is None else look.figures()


def export_folders(out: Path, ids: Sequence[int], spec: str) -> list[Path]:
    """Return where each candidate goes: `out` itself for one, `out/candidate-ID` for several."""
    if len(ids) == 1 and spec != "all":
        return [out]
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; give a folder")
    return [out / f"candidate-{candidate_id}" for candidate_id in ids]
