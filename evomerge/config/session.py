"""Create, open, resume and run searches: what the CLI verbs and the Python API call."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evomerge.config.build import (
    build_algorithm,
    build_header,
    build_objectives,
    build_search_space,
    compute_derived,
    compute_span,
    data_digests,
    data_files,
    header_differences,
    needs_span,
    resolve_config,
    with_chosen_groups,
)
from evomerge.config.cache import refuse_unusable_cache, usable_cache
from evomerge.config.construct import describe
from evomerge.config.manifest import search_manifest
from evomerge.config.models import OpenModels, open_models, source_files
from evomerge.config.ray_workers import ray_pool
from evomerge.config.schema import RunConfig
from evomerge.config.surrogate import save_surrogate
from evomerge.config.tasks import Tasks, build_tasks
from evomerge.config.track_run import followed
from evomerge.config.transforms import FillProgress, fill_transforms
from evomerge.config.warm_start import WarmStart, read_warm_start
from evomerge.config.worker_plan import planned
from evomerge.config.workers import (
    derived_bytes,
    equip,
    load_derived,
    read_run_config,
    read_sources,
    worker_of,
)
from evomerge.config.yaml_file import dump_yaml
from evomerge.core.choice_space import Space
from evomerge.errors import ConfigError, ReplayError, RunError
from evomerge.runtime.in_process import InProcessExecutor
from evomerge.runtime.machine import machine_line
from evomerge.runtime.placement import default_workers, threads_per_worker
from evomerge.runtime.placement_plan import Plan
from evomerge.runtime.watched import RunExecutor, WatchedExecutor, WatchedFiles
from evomerge.runtime.worker import MergeInputs
from evomerge.search.loop import LoopPlan, SearchLoop, StopReason
from evomerge.seeding import generator
from evomerge.storage.run_store import RunFolder, RunStore, stored_evaluations

# Parts of a journal's header that per-example scores depend on.
_SCORED_FROM = ("sources.", "data.", "donor.", "tasks.", "config.tasks")


def create_run(
    config: RunConfig,
    base_dir: Path,
    folder: RunFolder,
    warm_start: Path | None = None,
    *,
    on_transform: FillProgress | None = None,
    insecure: bool = False,
) -> None:
    """Check a config against the world and create its run folder; nothing is evaluated.

    Args:
        config: The config as written.
        base_dir: Folder that its relative paths start from.
        folder: Of the new run.
        warm_start: Run to take evaluations over from.
        on_transform: Called after every tensor of the config's transforms.
        insecure: Ask a Ray cluster on other machines even if it has no authentication.

    Raises:
        EvomergeError: Whatever is wrong, before the folder exists.
    """
    prepared = preflight(config, base_dir, insecure=insecure)
    manifest = search_manifest(prepared.space, prepared.models)
    warm = None if warm_start is None else read_warm_start(RunFolder(warm_start), prepared)
    fill_transforms(prepared.models.virtual, on_transform)
    cache = usable_cache(prepared.config.runtime.cache)
    derived = compute_derived(prepared.models, prepared.space, cache)
    span = compute_span(prepared.config, prepared.models, cache)
    files = {
        "sources.json": json.dumps(prepared.models.record, indent=1).encode(),
        "derived.npz": derived_bytes(derived, span),
        "manifest.json": json.dumps(manifest, indent=1).encode(),
    }
    if warm is not None:
        files |= warm.files()
    # config.yaml last: a folder with it is a whole run.
    body = prepared.config.model_dump(mode="json")
    folder.create({**files, "config.yaml": dump_yaml(body).encode()})


@dataclass(frozen=True, eq=False)
class Prepared:
    """A config that passed every check."""

    config: RunConfig
    models: OpenModels
    tasks: Tasks
    space: Space
    plan: Plan | None = None  # of Ray workers; None where all that depends on it is given


def preflight(config: RunConfig, base_dir: Path, *, insecure: bool = False) -> Prepared:
    """Resolve a config, open and align its models, read its data, plan its workers.

    Raises:
        ConfigError: The config is wrong, or no node can hold a worker.
        PreflightError: Models or data cannot be used.
        ExecutorError: The number of workers is left to a cluster that cannot be asked.
    """
    resolved = resolve_config(config, base_dir)
    refuse_unusable_cache(resolved.runtime.cache)
    tasks = build_tasks(resolved)
    models = open_models(resolved)
    space, merge = build_search_space(resolved, models, None)
    if not needs_span(resolved):  # refuses its settings now, not when the run folder exists
        algorithm = build_algorithm(resolved)
        algorithm.start(space, build_objectives(resolved), generator(resolved.seed, "algorithm"))
    merged = resolved.model_copy(update={"merge": merge})
    resolved, plan = planned(merged, models, tasks.search, insecure=insecure)
    return Prepared(resolved, models, tasks, space, plan)


class Session:
    """An opened run: its models, its loop replayed to the end of the journal, its log."""

    def __init__(
        self,
        folder: RunFolder,
        *,
        config: RunConfig | None = None,
        insecure: bool = False,
        on_change: Callable[[SearchLoop], None] | None = None,
        on_warning: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Open a run for writing and replay it.

        Args:
            folder: An existing run.
            config: Its config with a changed budget or runtime; None: as stored.
            insecure: Join a Ray cluster on other machines even if it has no authentication.
            on_change: Called after every result the algorithm was told, replay included.
            on_warning: Called, from any thread, with what went wrong beside the search.

        Raises:
            RunLockedError: Another driver owns the run.
            ReplayError: Config, models, data or packages changed since it began.
        """
        self.folder = folder
        self._insecure = insecure
        self._on_warning = on_warning
        self.config = config = config or read_run_config(folder)
        self.tasks = build_tasks(self.config)
        self.models = open_models(self.config, known=read_sources(folder))
        self._files = WatchedFiles([*source_files(self.models.record), *data_files(self.tasks)])
        self.derived, span = load_derived(folder, self.models, usable_cache(config.runtime.cache))
        self.objectives = build_objectives(self.config)
        warm = WarmStart.of(folder)
        self.space, _ = build_search_space(
            self.config, self.models, span, warm.proposals, self.derived
        )
        header = build_header(
            self.config,
            self.models,
            self.tasks,
            derived=folder.derived.read_bytes(),
            founders=len(self.space.founders),
            warm=len(warm.proposals),
            warm_digest=warm.digest,
        )
        self.store = RunStore(folder, header=header, tasks=self.tasks.sizes)
        try:
            self._refuse_changes(header)
            self._keep_changes()
            self.loop = SearchLoop(
                algorithm=build_algorithm(self.config),
                space=self.space,
                objectives=self.objectives,
                log=self.store,
                plan=LoopPlan(
                    seed=self.config.seed,
                    evaluations=self.config.budget.evaluations + len(warm.proposals),
                    tasks=self.tasks.sizes,
                    look_ahead=self.config.search.look_ahead or 1,
                    tell_order=self.config.search.tell_order,
                    seconds=self.config.budget.seconds,
                    margins=self.store.scores.has_margins,
                ),
                on_change=on_change,
            )
            events = self.store.journal.events[1:]
            self.loop.replay(stored_evaluations(events, self.store.scores, self.tasks.sizes))
        except BaseException:
            self.store.close()
            raise

    def _refuse_changes(self, header: dict[str, Any]) -> None:
        then, now = json.loads(json.dumps(self.store.header)), json.loads(json.dumps(header))
        # A run goes on as it began: one from before margins were kept is told none.
        for key in ("format", "margins"):
            then.pop(key, None)
            now.pop(key, None)
        changed = header_differences(then, now)
        if changed:
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            # A warm start takes scores over, so it needs the models and examples they are of.
            scored_otherwise = any(line.startswith(_SCORED_FROM) for line in changed)
            begin = (
                "search anew: evomerge search CONFIG --run NEW"
                if scored_otherwise
                else "begin a new run from this one's evaluations: "
                f"evomerge search CONFIG --run NEW --warm-start {self.folder.where}"
            )
            raise ReplayError(
                f"{self.folder.where}: {changed[0]}{more} since the run began, so it cannot be "
                f"continued exactly. Put it back, or {begin}"
            )

    def _keep_changes(self) -> None:
        """Write what may change to config.yaml, so that workers, `status` and resumes know it."""
        stored, now = read_run_config(self.folder), self.config
        changes = {key: getattr(now, key) for key in ("budget", "tasks", "trackers")}
        kept = stored.model_copy(update=changes)  # of tasks: their servers
        if kept != stored:
            self.store.rewrite_config(dump_yaml(kept.model_dump(mode="json")).encode())

    def executor(self) -> RunExecutor:
        """Start the workers that the config asks for."""
        fill_transforms(self.models.virtual)  # once, rather than in every worker
        if (runtime := self.config.runtime).executor == "in-process":
            threads = runtime.threads or threads_per_worker(1, self.models.space.n_elements)
            inputs = MergeInputs(self.models.space, self.models.sources, self.derived)
            worker = worker_of(
                inputs, self.models, self.tasks.search, device=runtime.device, threads=threads
            )
            equip(worker, self.config, self.models, self.tasks.search, threads=threads)
            return InProcessExecutor(worker, max_attempts=runtime.max_attempts)
        return ray_pool(
            self.config,
            self.models,
            self.tasks.search,
            place=self.folder.place,
            note=self.store.note,
            insecure=self._insecure,
        )

    def run(self) -> StopReason:
        """Search until the budget is spent or `loop.stop_requested`; returns why it ended."""
        reason: StopReason = "budget"
        if self.loop.waiting or self.loop.has_budget:
            self.store.note(machine_line())
            executor = WatchedExecutor(self.executor(), self._files)
            with followed(self.folder, self.config.trackers, self._warn):
                try:
                    reason = self.loop.run(executor)
                    executor.last_look()
                finally:
                    executor.close()
            self._refuse_changed_data()
        save_surrogate(self.folder, self.loop)
        return reason

    def _warn(self, line: str) -> None:
        with suppress(RunError, ValueError):  # the disk is full; the run is closed by now
            self.store.note(line)
        self._on_warning(line)

    def _refuse_changed_data(self) -> None:
        """Raise RunError when an example file or evaluator's code is not as the run began with."""
        then, now = self.store.header["data"], data_digests(self.tasks)
        changed = sorted(path for path in {*then, *now} if then.get(path) != now.get(path))
        if changed:
            raise RunError(
                f"{changed[0]}: was changed while the search ran, so some scores may be of other "
                "examples than the rest. Put the file back; where the change came before the end "
                "of the search, search anew: evomerge search CONFIG --run NEW"
            )

    def close(self) -> None:
        """Sync and release the run."""
        self.store.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_or_create(
    config: RunConfig,
    base_dir: Path,
    folder: RunFolder,
    warm_start: Path | None = None,
    *,
    on_transform: FillProgress | None = None,
    insecure: bool = False,
) -> tuple[RunConfig, bool]:
    """Create the run, or accept the existing one if the config is the same; see `create_run`.

    Returns:
        The config to run with (stored, with this one's budget and runtime), and whether the
        run existed.

    Raises:
        RunError: The folder holds a run of another config; names the first difference.
    """
    if not folder.exists():
        create_run(
            config, base_dir, folder, warm_start, on_transform=on_transform, insecure=insecure
        )
        return read_run_config(folder), False
    if warm_start is not None:
        raise RunError(f"{folder.where}: exists; --warm-start begins a new run, give a new --run")
    stored = read_run_config(folder)
    wanted = _as_created(resolve_config(config, base_dir), config, stored)
    # Before the models are opened: another model is no change of the one the run began with.
    _refuse_other_config(folder, stored, wanted.model_copy(update={"merge": stored.merge}))
    models = open_models(wanted, known=read_sources(folder))
    _, merge = build_search_space(wanted, models, None)
    wanted = wanted.model_copy(update={"merge": merge})
    _refuse_other_config(folder, stored, wanted)
    return wanted, True


def _refuse_other_config(folder: RunFolder, stored: RunConfig, wanted: RunConfig) -> None:
    changed = header_differences(stored.replay_part(), wanted.replay_part())
    if changed:
        raise RunError(
            f"{folder.where}: holds a run of another config: {changed[0]}. Only `budget`, "
            "`runtime` and `trackers` may change; give a new --run folder for a new search."
        )


def _as_created(wanted: RunConfig, given: RunConfig, stored: RunConfig) -> RunConfig:
    """Keep what was derived when the run was created, but `runtime.workers`: planned at a start."""
    changes: dict[str, Any] = {"merge": with_chosen_groups(wanted, stored)}
    if given.search.look_ahead is None:
        look_ahead = {"look_ahead": stored.search.look_ahead}
        changes["search"] = wanted.search.model_copy(update=look_ahead)
    if "budget_hint" in stored.algorithm and given.algorithm.get("budget_hint") is None:
        changes["algorithm"] = {**wanted.algorithm, "budget_hint": stored.algorithm["budget_hint"]}
    return wanted.model_copy(update=changes)


def with_runtime(
    config: RunConfig,
    *,
    executor: str | None = None,
    address: str | None = None,
    workers: int | None = None,
    is_resolved: bool = False,
) -> RunConfig:
    """Return the config with runtime keys replaced; None leaves a key as it is.

    Args:
        config: A config as written, or a run's own.
        executor: in-process or ray.
        address: Ray cluster.
        workers: How many workers.
        is_resolved: The config is a run's own: its number of workers may be the default of the
            executor it began with, which another executor replaces by its own.

    Raises:
        ConfigError: A value is wrong.
    """
    now = config.runtime
    changes = {"executor": executor, "address": address, "workers": workers}
    kept = {key: value for key, value in changes.items() if value is not None}
    if is_resolved and workers is None and executor in {"in-process", "ray"} - {now.executor}:
        before, after = (
            default_workers(name, now.cpus_per_worker) for name in (now.executor, str(executor))
        )
        if now.workers == before:
            kept["workers"] = after
    try:
        runtime = type(config.runtime).model_validate({**config.runtime.model_dump(), **kept})
    except ValidationError as error:
        raise ConfigError(f"runtime.{describe(error)}") from None
    return config.model_copy(update={"runtime": runtime})


def with_budget(config: RunConfig, evaluations: int | None) -> RunConfig:
    """Return the config with another evaluation budget; None leaves it."""
    if evaluations is None:
        return config
    if evaluations < 1:
        raise ConfigError(f"budget.evaluations is {evaluations}, must be at least 1")
    budget = config.budget.model_copy(update={"evaluations": evaluations})
    return config.model_copy(update={"budget": budget})
