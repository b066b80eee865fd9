"""Which engine a task names, and whether a run's workers can have it."""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.config.models import OpenModels
from evomerge.errors import ConfigError
from evomerge.evaluation.evaluator import Evaluator
from evomerge.evaluation.part import whole_of
from evomerge.evaluation.vllm_engine import VllmEngine
from evomerge.runtime.placement import is_every_gpu


def engine_of(evaluator: Evaluator) -> VllmEngine | None:
    """Return the engine that an evaluator names; None: transformers, or no resident model."""
    found: VllmEngine | None = getattr(whole_of(evaluator), "engine", None)
    return found


def refuse_engines(
    evaluators: Mapping[str, Evaluator],
    models: OpenModels,
    *,
    device: str,
    gpus_per_worker: float | None = None,
) -> None:
    """Refuse engines that cannot hold the candidates of a run, or not on the devices asked for.

    Args:
        evaluators: Task -> its evaluator.
        models: Of the run.
        device: `runtime.device`, or the device of a worker.
        gpus_per_worker: As in the config.

    Raises:
        ConfigError: There are two, more than one GPU is meant for one, or the merge is none that
            vLLM can be given.
    """
    engines = {task: engine for task, e in evaluators.items() if (engine := engine_of(e))}
    if not engines:
        return
    first, task = next(iter(engines.values())), next(iter(engines))
    other = next((name for name, engine in engines.items() if engine != first), None)
    if other is not None:
        raise ConfigError(
            f"tasks: {task!r} and {other!r} have different `engine:` settings, and a worker has "
            "room for one engine; give them the same"
        )
    wide = None
    if is_every_gpu(device):
        wide = f"runtime.device: {device}", "one device, or none"
    elif gpus_per_worker is not None and gpus_per_worker > 1:
        wide = f"runtime.gpus_per_worker: {gpus_per_worker:g}", "1, or nothing"
    if wide is not None:
        raise ConfigError(
            f"{wide[0]} means several GPUs for one worker, but the `engine:` of task {task!r} uses "
            f"one; give {wide[1]}: every GPU then gets a worker of its own"
        )
    if models.layers is not None:
        raise ConfigError(
            f"tasks: {task!r} has an `engine:`, but sequences of layers are scored by transformers "
            "only; remove it"
        )
    if models.space.untied:
        raise ConfigError(
            f"tasks: {task!r} has an `engine:`, but the models untie embeddings that the donor's "
            "config ties, which vLLM cannot be given; remove it, or put an untied model first"
        )
