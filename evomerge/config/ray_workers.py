"""Start a run's workers on Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.config.models import OpenModels
from evomerge.config.schema import RunConfig
from evomerge.config.worker_plan import plan_of, planner_of, worker_need
from evomerge.config.workers import build_worker
from evomerge.evaluation.evaluator import Evaluator
from evomerge.runtime.placement import threads_per_worker

if TYPE_CHECKING:
    from evomerge.runtime.ray_pool import RayPool


def ray_pool(
    config: RunConfig,
    models: OpenModels,
    evaluators: Mapping[str, Evaluator],
    *,
    place: Path | str,
    note: Callable[[str], None],
    insecure: bool,
) -> RayPool:
    """Return a pool whose workers go where they are planned; returns before they are ready.

    Args:
        config: Of the run.
        models: Of the run.
        evaluators: Task -> its evaluator.
        place: Path or URL of the run folder, which every worker opens.
        note: Writes a line to events.log.
        insecure: Join a cluster on other machines even if it has no authentication.

    Raises:
        PlacementError: No node can hold a worker.
        ExecutorError: Ray cannot be started or joined.
    """
    from evomerge.runtime.ray_pool import RayPool

    runtime = config.runtime
    is_local = runtime.address is None
    plan = plan_of(config, models, evaluators) if is_local else None
    workers = runtime.workers or (plan.workers if plan is not None else 1)
    # On other machines a worker uses what it has reserved there.
    cpus = None if is_local else runtime.cpus_per_worker
    threads = runtime.threads or threads_per_worker(workers, models.space.n_elements, cpus)
    return RayPool(
        partial(build_worker, place, runtime.device, threads),
        workers=workers,
        address=runtime.address,
        gpus_per_worker=runtime.gpus_per_worker if plan is None else plan.shapes()[0].gpus,
        cpus_per_worker=runtime.cpus_per_worker,
        max_attempts=runtime.max_attempts,
        timeout_seconds=runtime.timeout_seconds,
        note=note,
        insecure=insecure,
        planner=planner_of(runtime, worker_need(config, models, evaluators)),
    )
