"""What a search will cost and can tell apart, measured on two warm-up candidates."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evomerge.config.build import (
    build_algorithm,
    build_objectives,
    build_search_space,
    compute_derived,
    compute_span,
    keeps_margins,
)
from evomerge.config.cache import usable_cache
from evomerge.config.model_size import model_bytes
from evomerge.config.schema import RunConfig
from evomerge.config.session import Prepared, preflight
from evomerge.config.transforms import fill_transforms
from evomerge.config.workers import worker_of
from evomerge.core.arrays import ScoreArray
from evomerge.core.candidate import Candidate, Evaluation, Proposal
from evomerge.core.choice_space import Space
from evomerge.errors import EvaluationError, EvomergeError, first_line
from evomerge.runtime.placement import pick_device, threads_per_worker
from evomerge.runtime.worker import MergeInputs, Worker
from evomerge.search.events import asked_event, told_event
from evomerge.seeding import generator

N_WARM_UPS = 2


@dataclass(frozen=True, eq=False)
class WarmUp:
    """One warm-up candidate.

    Attributes:
        origin: How its recipe came about.
        merge_seconds: Wall seconds of merging and installing.
        task_seconds: Task -> wall seconds of scoring all its examples.
        scores: Task -> (N_task,) per-example scores.
        cpu_seconds: CPU seconds of this process for all of it.
        event_bytes: What the journal and scores.f32 would keep of it.
    """

    origin: str
    merge_seconds: float
    task_seconds: Mapping[str, float]
    scores: Mapping[str, ScoreArray]
    cpu_seconds: float
    event_bytes: int

    @property
    def seconds(self) -> float:
        """Wall seconds of merging and scoring."""
        return self.merge_seconds + sum(self.task_seconds.values())


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured, and what it was measured on.

    Attributes:
        config: The resolved config.
        device: Where the warm-ups ran: "cpu" or "cuda:N".
        threads: CPU threads of the worker.
        start_seconds: Wall seconds before the first warm-up: statistics and loading models.
        warm_ups: Two, in order; the first one also pays for what is done once.
        model_bytes: Size of one exported model.
        free_bytes: Free disk in the current folder.
    """

    config: RunConfig
    device: str
    threads: int
    start_seconds: float
    warm_ups: tuple[WarmUp, ...]
    model_bytes: int
    free_bytes: int


def measure(config: RunConfig, base_dir: Path) -> Measured:
    """Score two candidates of a search in this process; no run folder is made.

    What every candidate needs of the models is kept in the cache, as a search does.

    Args:
        config: The config as written.
        base_dir: Folder that its relative paths start from.

    Raises:
        ConfigError: The config is wrong.
        PreflightError: Models or data cannot be used.
        EvaluationError: A warm-up cannot be merged or scored.
    """
    prepared = preflight(config, base_dir)
    started = time.perf_counter()
    models, resolved, runtime = prepared.models, prepared.config, prepared.config.runtime
    fill_transforms(models.virtual)
    cache = usable_cache(runtime.cache)
    derived = compute_derived(models, prepared.space, cache)
    span = compute_span(resolved, models, cache)
    space, _ = build_search_space(resolved, models, span, (), derived)
    workers = runtime.workers or 1
    threads = runtime.threads or threads_per_worker(workers, models.space.n_elements)
    worker = worker_of(
        MergeInputs(models.space, models.sources, derived),
        models,
        prepared.tasks.search,
        device=runtime.device,
        threads=threads,
        name="plan",
    )
    start_seconds = time.perf_counter() - started
    warm_ups = [_warm_up(worker, prepared, item) for item in _proposals(resolved, space)]
    return Measured(
        resolved,
        pick_device(runtime.device),
        threads,
        start_seconds,
        tuple(warm_ups),
        model_bytes(models),
        shutil.disk_usage(Path.cwd()).free,
    )


def _proposals(config: RunConfig, space: Space) -> list[Proposal]:
    """Return two proposals of the algorithm itself, founders where it waits for results."""
    plain = config.model_copy(update={"racing": None})  # which asks for parts of the examples
    algorithm = build_algorithm(plain)
    algorithm.start(space, build_objectives(config), generator(config.seed, "algorithm"))
    asked = (algorithm.ask() for _ in range(N_WARM_UPS))
    found = [proposal for proposal in asked if proposal is not None]
    return [*found, *reversed(space.founders)][:N_WARM_UPS]


def _warm_up(worker: Worker, prepared: Prepared, proposal: Proposal) -> WarmUp:
    cpu = time.process_time()
    try:
        started = time.perf_counter()
        weights = worker.install(proposal.recipe)
        merge_seconds = time.perf_counter() - started
        scores: dict[str, ScoreArray] = {}
        task_seconds: dict[str, float] = {}
        sizes = prepared.tasks.sizes
        for task, n in sizes.items():  # as the config lists them; positions count by name
            first = sum(size for other, size in sizes.items() if other < task)
            started = time.perf_counter()
            scores[task] = worker.score(np.arange(first, first + n))[task]
            task_seconds[task] = time.perf_counter() - started
    except EvomergeError:
        raise
    except Exception as error:  # an evaluator's own code, or the device, can raise anything
        raise EvaluationError(
            f"warm-up {proposal.origin!r}: {type(error).__name__}: {first_line(error)}"
        ) from error
    cpu_seconds = time.process_time() - cpu
    n_bytes = _event_bytes(proposal, scores, weights, prepared)
    return WarmUp(proposal.origin, merge_seconds, task_seconds, scores, cpu_seconds, n_bytes)


def _event_bytes(
    proposal: Proposal, scores: Mapping[str, ScoreArray], weights: str, prepared: Prepared
) -> int:
    """Return how many bytes a run folder keeps of a candidate; digests of lines left out."""
    candidate = Candidate(0, proposal.recipe, proposal.parents, 0, proposal.origin)
    evaluation = Evaluation(candidate, scores, None, weights)
    values = [float(value) for value in build_objectives(prepared.config).values(evaluation)]
    events = (asked_event(candidate), told_event(evaluation, values, 0, "0" * 16))
    width = 8 if keeps_margins(prepared.config, prepared.tasks.search) else 4
    rows = sum(len(row) for row in scores.values()) * width
    return rows + sum(len(json.dumps(event)) for event in events)
