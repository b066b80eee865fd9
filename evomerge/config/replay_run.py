"""Do one candidate of a run again: merge, score, compare with what the journal says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.config.cache import usable_cache
from evomerge.config.models import open_models
from evomerge.config.results import RunResults
from evomerge.config.tasks import build_tasks
from evomerge.config.workers import load_derived, read_sources, worker_of
from evomerge.core.arrays import ScoreArray
from evomerge.core.candidate import scored_examples, split_scores
from evomerge.errors import EvaluationError, EvomergeError, RunError, first_line
from evomerge.runtime.placement import threads_per_worker
from evomerge.runtime.worker import MergeInputs
from evomerge.storage.run_store import RunFolder
from evomerge.storage.score_log import ScoreLog


@dataclass(frozen=True)
class TaskReplay:
    """How one task's scores compare.

    Attributes:
        task: Its name.
        n: Examples that were scored then, and again.
        n_different: How many of them score otherwise now.
        largest: The largest difference.
        example: Position of the first that differs, None where all are equal.
    """

    task: str
    n: int
    n_different: int
    largest: float
    example: int | None


@dataclass(frozen=True)
class Replayed:
    """What came out.

    Attributes:
        candidate: Its id.
        recorded_weights: Digest of the merged tensors in the journal.
        weights: Digest of those merged now.
        tasks: One per task.
    """

    candidate: int
    recorded_weights: str
    weights: str
    tasks: tuple[TaskReplay, ...]

    @property
    def is_equal(self) -> bool:
        """Whether weights and all scores are the same."""
        return self.weights == self.recorded_weights and not any(t.n_different for t in self.tasks)


def replay_candidate(folder: RunFolder, candidate_id: int) -> Replayed:
    """Merge and score a candidate again, on the examples it was scored on.

    Args:
        folder: The run; only read.
        candidate_id: Which one.

    Raises:
        ConfigError: There is no such candidate, or it has no scores.
        SourceError: A model changed since the run began.
        RunError: The evaluators' data changed: there are other numbers of examples.
        JournalError: The recorded scores are damaged.
        EvaluationError: It cannot be scored any more.
    """
    results = RunResults(folder)
    recipe = results.candidate(candidate_id).recipe
    event = results.told_of(candidate_id)
    config = results.config
    models = open_models(config, known=read_sources(folder))
    derived, _ = load_derived(folder, models, usable_cache(config.runtime.cache))
    tasks = build_tasks(config)
    if dict(tasks.sizes) != dict(results.header["tasks"]):
        raise RunError(
            f"{folder.path}: the tasks have {dict(tasks.sizes)} examples, the run was scored on "
            f"{dict(results.header['tasks'])}. Put the data back to compare with it."
        )
    log = ScoreLog.of(folder.scores, results.header)
    recorded = log.read(int(event["row"]), str(event["scores"]))
    runtime = config.runtime
    worker = worker_of(
        MergeInputs(models.space, models.sources, derived),
        models,
        tasks.search,
        device=runtime.device,
        threads=runtime.threads
        or threads_per_worker(runtime.workers or 1, models.space.n_elements),
        name="replay",
    )
    try:
        weights = worker.install(recipe)
        again = worker.score(scored_examples(recorded))
    except EvomergeError:
        raise
    except Exception as error:  # an evaluator's own code can raise anything
        raise EvaluationError(
            f"candidate {candidate_id}: {type(error).__name__}: {first_line(error)}"
        ) from error
    before = split_scores(recorded, tasks.sizes)
    compared = tuple(_compare(task, before[task], again[task]) for task in tasks.sizes)
    return Replayed(candidate_id, str(event["weights"]), weights, compared)


def _compare(task: str, before: ScoreArray, now: ScoreArray) -> TaskReplay:
    scored = ~np.isnan(before)
    differs = np.flatnonzero(scored & (before != now))
    gaps = np.abs(before[differs].astype(np.float64) - now[differs])
    return TaskReplay(
        task,
        int(scored.sum()),
        len(differs),
        float(gaps.max(initial=0.0)),
        int(differs[0]) if len(differs) else None,
    )
