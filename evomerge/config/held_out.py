"""Score recipes on the test examples of a run: numbers for reports, never for choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evomerge.config.cache import usable_cache
from evomerge.config.models import OpenModels, open_models
from evomerge.config.schema import RunConfig
from evomerge.config.tasks import build_tasks
from evomerge.config.workers import load_derived, read_run_config, read_sources, worker_of
from evomerge.core.arrays import ScoreArray
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError
from evomerge.evaluation.evaluator import Evaluator
from evomerge.merging.derived import Derived
from evomerge.runtime.placement import threads_per_worker
from evomerge.runtime.worker import MergeInputs, Worker
from evomerge.storage.run_store import RunFolder


def score_held_out(
    folder: RunFolder, recipes: Sequence[Recipe], *, device: str | None = None
) -> list[dict[str, ScoreArray]]:
    """Return each recipe's per-example scores on the test examples of a run.

    Merged and scored in this process, by the same code as in the search, from the run's saved
    Gram matrices; the run itself is neither locked nor changed.

    Args:
        folder: The run, finished or not.
        recipes: What to score; sources are those of the run.
        device: auto, cpu or cuda:N; None: the config's.

    Returns:
        One mapping per recipe: task -> (N_task,) float32, for tasks with test examples.

    Raises:
        ConfigError: No task of the run has test examples.
        SourceError: A model changed since the run began.
        EvaluationError: A recipe cannot be scored.
    """
    config = read_run_config(folder)
    held_out = build_tasks(config).held_out
    if not held_out:
        raise ConfigError(
            "no task has test examples; give a task `held_out:` with the keys of its "
            "evaluator that differ, such as `held_out: {examples: test.jsonl}`, or `splits:`"
        )
    models = open_models(config, known=read_sources(folder))
    derived, _ = load_derived(folder, models, usable_cache(config.runtime.cache))
    worker = worker_on(config, models, derived, held_out, name="test", device=device)
    scored = []
    for recipe in recipes:
        worker.install(recipe)
        scored.append(worker.score())
    return scored


def worker_on(
    config: RunConfig,
    models: OpenModels,
    derived: Derived,
    evaluators: Mapping[str, Evaluator],
    *,
    name: str,
    device: str | None = None,
) -> Worker:
    """Return a worker of this process that scores on other examples than the search's.

    Args:
        config: Of the run.
        models: Its models.
        derived: Its Gram matrices.
        evaluators: Task -> evaluator.
        name: Of the worker.
        device: auto, cpu or cuda:N; None: the config's.
    """
    inputs = MergeInputs(models.space, models.sources, derived)
    threads = config.runtime.threads or threads_per_worker(1, models.space.n_elements)
    where = device or config.runtime.device
    return worker_of(inputs, models, evaluators, device=where, threads=threads, name=name)
