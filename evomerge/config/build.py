"""Composition root: a resolved config -> objects. Everything concrete is chosen here."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections.abc import Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import evomerge
import evomerge.algorithms
import evomerge.algorithms.races
import evomerge.evaluation
import evomerge.merging
from evomerge.algorithms.algorithm import SearchAlgorithm, search_algorithms
from evomerge.algorithms.races.race import Race, races
from evomerge.config.cache import too_large_for_a_search, usable_cache
from evomerge.config.constraints import build_constraints, check_bound_sources
from evomerge.config.construct import construct
from evomerge.config.merge_choice import ANY_OF
from evomerge.config.merge_space import build_space, with_groups_of
from evomerge.config.models import OpenModels, resolve_models
from evomerge.config.schema import RunConfig
from evomerge.config.tasks import Tasks
from evomerge.config.trackers import build_tracker
from evomerge.core.candidate import Proposal
from evomerge.core.choice_space import Space
from evomerge.core.layer_sequence import LAYER_SEQUENCE
from evomerge.core.linear_span import LinearSpan, block_size
from evomerge.core.objective import Objective, Objectives
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError, nearest
from evomerge.evaluation.evaluator import Evaluator, evaluators
from evomerge.evaluation.margins import gives_margins
from evomerge.evaluation.packages import package_versions
from evomerge.evaluation.part import whole_of
from evomerge.export import DONOR_FILES
from evomerge.merging.auto_scale import auto_alpha
from evomerge.merging.derived import QUANTILES, Derived, derive_for
from evomerge.merging.grams import block_grams
from evomerge.merging.operator import merge_operators
from evomerge.runtime.placement import check_device, default_look_ahead
from evomerge.storage.derived_cache import DerivedCache
from evomerge.storage.named_path import named_path

REPLAY_PACKAGES = ("numpy", "torch", "transformers", "nevergrad", "optuna")


def resolve_config(config: RunConfig, base_dir: Path) -> RunConfig:
    """Return the config with every path absolute and every default spelled out.

    All but the `merge:` section, whose defaults depend on the models (`resolve_merge`).

    Raises:
        ConfigError: A section does not fit the class it names.
        SourceError: A model cannot be found.
    """
    resolved = resolve_models(resolve_sections(config, base_dir), base_dir)
    check_bound_sources(resolved)
    return resolved


def resolve_sections(config: RunConfig, base_dir: Path) -> RunConfig:
    """Return the same as `resolve_config` but for the models, which are not looked up.

    Raises:
        ConfigError: A section does not fit the class it names.
    """
    _, algorithm = construct(search_algorithms, config.algorithm, "algorithm", base_dir)
    if "budget_hint" in algorithm and algorithm["budget_hint"] is None:
        # Optimisers that plan ahead get the budget the run began with; a longer one on resume
        # does not change what was planned.
        algorithm["budget_hint"] = config.budget.evaluations
    racing = config.racing
    if racing is not None:
        _, racing = construct(races, racing, "racing", base_dir)
    tasks = []
    for index, task in enumerate(config.tasks):
        where = f"tasks.{index}.evaluator"
        _, evaluator = construct(evaluators, task.evaluator, where, base_dir)
        held_out = task.held_out
        if held_out is not None:
            merged = {**task.evaluator, **held_out}
            _, full = construct(evaluators, merged, f"tasks.{index}.held_out", base_dir)
            held_out = {key: full[key] for key in held_out}
        tasks.append(task.model_copy(update={"evaluator": evaluator, "held_out": held_out}))
    names = [task.name for task in tasks]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"tasks: the name {repeated[0]!r} is given twice")
    build_objectives(config)
    trackers = [
        build_tracker(body, f"trackers.{index}", base_dir)[1]
        for index, body in enumerate(config.trackers)
    ]
    check_device(config.runtime.device)
    workers = config.runtime.workers
    if config.runtime.executor == "in-process":
        workers = workers or 1
    look_ahead = config.search.look_ahead
    if workers is not None:  # on Ray, how many there are is planned once the models are known
        look_ahead = look_ahead or default_look_ahead(workers)
    folders = {
        key: str((base_dir / named_path(folder)).resolve())
        for key, folder in (("cache", config.runtime.cache), ("ledger", config.runtime.ledger))
        if folder is not None
    }
    staging = config.runtime.staging
    if staging is not None:
        place = str((base_dir / named_path(staging.folder)).resolve())
        staging = staging.model_copy(update={"folder": place})
    return config.model_copy(
        update={
            "algorithm": algorithm,
            "racing": racing,
            "tasks": tasks,
            "trackers": trackers,
            "search": config.search.model_copy(update={"look_ahead": look_ahead}),
            "runtime": config.runtime.model_copy(
                update={"workers": workers, "staging": staging, **folders}
            ),
        }
    )


def build_objectives(config: RunConfig) -> Objectives:
    """Return objectives and constraints; without `objectives:` every task is one.

    Raises:
        ConfigError: An objective or constraint names a task that does not exist, or a bound is
            malformed.
    """
    names = [task.name for task in config.tasks]
    constraints = build_constraints(config)
    if not config.objectives:
        return Objectives(tuple(Objective(name, {name: 1.0}) for name in names), constraints)
    for objective in config.objectives:
        for task in objective.tasks:
            if task not in names:
                raise ConfigError(
                    f"objectives.{objective.name}: {task!r} is not a task."
                    f"{nearest(task, names)} Tasks: {', '.join(names)}."
                )
    items = tuple(Objective(item.name, item.tasks) for item in config.objectives)
    return Objectives(items, constraints)


def build_algorithm(config: RunConfig) -> SearchAlgorithm:
    """Return a fresh algorithm."""
    algorithm: SearchAlgorithm
    algorithm, _ = construct(search_algorithms, config.algorithm, "algorithm", Path())
    if config.racing is None:
        return algorithm
    rules: Race
    rules, _ = construct(races, config.racing, "racing", Path())
    return rules.around(algorithm)


def needs_span(config: RunConfig) -> bool:
    """Return whether the config's algorithm works in the span of the sources."""
    cls = search_algorithms.get(str(config.algorithm["name"]))
    return bool(getattr(cls, "needs_span", False))


def wanted_numbers(config: RunConfig) -> int | None:
    """Return about how many numbers the config's algorithm searches best; None: it does not say."""
    cls = search_algorithms.get(str(config.algorithm["name"]))
    return getattr(cls, "wanted_numbers", None)


def with_chosen_groups(config: RunConfig, stored: RunConfig) -> dict[str, Any]:
    """Return the `merge:` section, with a run's own groups where its algorithm chose them."""
    if wanted_numbers(config) is None:
        return config.merge
    return with_groups_of(config.merge, stored.merge)


def build_search_space(
    config: RunConfig,
    models: OpenModels,
    span: LinearSpan | None,
    warm: tuple[Proposal, ...] = (),
    derived: Derived | None = None,
) -> tuple[Space, dict[str, Any]]:
    """Return the search space and the `merge:` section with all defaults.

    Args:
        config: A resolved config.
        models: Its models.
        span: Geometry for algorithms that need it; None where only the shape is wanted.
        warm: Recipes of an earlier run, scored before the founders.
        derived: From `compute_derived`, for founders in the span; None where they are only counted.
    """
    in_span = needs_span(config)
    if in_span:
        method = ANY_OF if ANY_OF in config.merge else str(config.merge.get("name"))
        if method != "linear":
            raise ConfigError(
                f"merge.{ANY_OF if method == ANY_OF else 'name'}: "
                f"{config.algorithm['name']!r} breeds linear combinations of the "
                f"models; use `merge: {{name: linear, normalize: false}}` instead of {method!r}"
            )
    founders = config.search.founders
    space, resolved = build_space(
        config.merge,
        models.space,
        founders=founders,
        span=span,
        in_span=in_span,
        virtual={group.label: group.ids for group in models.virtual},
        grams=None if derived is None else derived.grams,
        auto_alpha=partial(_measure_alpha, config, models),
        n_layers=None if models.layers is None else models.layers.inputs.n_layers,
        numbers=wanted_numbers(config),
    )
    if in_span:
        _refuse_idle_keys(config, models, resolved)
    if warm:
        space = dataclasses.replace(space, founders=(*warm, *space.founders))
    return space, resolved


def _refuse_idle_keys(config: RunConfig, models: OpenModels, resolved: dict[str, Any]) -> None:
    """Refuse `merge:` keys that say something an algorithm in the span never looks at."""
    bare = {key: resolved[key] for key in ("name", "normalize")}
    _, plain = build_space(bare, models.space, founders="none", span=None)
    for key, value in resolved.items():
        if value != plain.get(key):
            raise ConfigError(
                f"merge.{key}: {config.algorithm['name']!r} moves freely between the models, in "
                "pieces of its own choice, and would pass over this key; remove it"
            )


def compute_span(
    config: RunConfig, models: OpenModels, cache: DerivedCache | None = None
) -> LinearSpan | None:
    """Return the geometry of the span of the sources, if the algorithm needs it."""
    if not needs_span(config):
        return None
    n_elements = models.space.n_elements
    block = block_size(n_elements)
    grams = block_grams(models.space, models.sources, block, cache)
    sources, tensors = models.space.sources, models.space.tensor_breaks
    return LinearSpan.from_block_grams(sources, n_elements, block, grams, tensors)


def _measure_alpha(config: RunConfig, models: OpenModels, recipe: Recipe) -> float:
    """Return what `layer_scale.alpha: auto` is for a recipe; reads all the models."""
    operator = merge_operators.get(recipe.operator)
    cache = usable_cache(config.runtime.cache)
    leave_out = () if cache is None else too_large_for_a_search(cache, models.space)
    derived = derive_for(operator, models.space, models.sources, cache, leave_out=leave_out)
    return auto_alpha(recipe, models.space, models.sources, derived)


def operators_of(space: Space) -> tuple[type, ...]:
    """Return the classes of a space's merge methods, the first, and of its founders'."""
    founders = (proposal.recipe.operator for proposal in space.founders)
    names = dict.fromkeys([*space.methods, *founders])
    return tuple(merge_operators.get(name) for name in names if name != LAYER_SEQUENCE)


def idle_kinds(space: Space) -> tuple[str, ...]:
    """Return the kinds that only founders could use, which are too few to compute them for."""
    own = (merge_operators.get(name) for name in space.methods if name != LAYER_SEQUENCE)
    is_used = any(getattr(operator, "needs_thresholds", False) for operator in own)
    return () if is_used else (QUANTILES,)


def compute_derived(
    models: OpenModels,
    space: Space,
    cache: DerivedCache | None = None,
) -> Derived:
    """Compute what the merge methods of config and founders need of the sources, or find it."""
    operators = operators_of(space)
    too_large = () if cache is None else too_large_for_a_search(cache, models.space)
    leave_out = (*idle_kinds(space), *too_large)
    return derive_for(operators, models.space, models.sources, cache, leave_out=leave_out)


def build_header(
    config: RunConfig,
    models: OpenModels,
    tasks: Tasks,
    *,
    derived: bytes,
    founders: int,
    warm: int,
    warm_digest: str,
) -> dict[str, Any]:
    """Return the journal's header: all that a replay depends on.

    Args:
        config: The resolved config.
        models: Its models.
        tasks: Its evaluators.
        derived: Content of derived.npz.
        founders: How many recipes are scored before the algorithm's own, warm ones included.
        warm: How many of them come with the scores of an earlier run.
        warm_digest: Digest of warm_start.json, "" without one.
    """
    versions = {"evomerge": evomerge.__version__, "python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in REPLAY_PACKAGES}
    versions |= package_versions(tasks.search.values())
    header: dict[str, Any] = {
        "kind": "header",
        "format": 1,
        "config": config.replay_part(),
        "sources": {str(record["id"]): record["digest"] for record in models.record},
        "data": data_digests(tasks),
        "derived": hashlib.blake2b(derived, digest_size=16).hexdigest(),
        "donor": donor_digests(models.donor),
        "tasks": dict(tasks.sizes),
        "founders": founders,
        "warm": warm,
        "warm_start": warm_digest,
        "versions": versions,
    }
    if keeps_margins(config, tasks.search):
        # Versions that know no margins would cut the scores off.
        header |= {"format": 2, "margins": True}
    return header


def keeps_margins(config: RunConfig, evaluators: Mapping[str, Evaluator]) -> bool:
    """Return whether a new run keeps margins: its algorithm uses them and a task gives them."""
    algorithm = search_algorithms.get(str(config.algorithm["name"]))
    wants = bool(getattr(algorithm, "uses_margins", False))
    return wants and any(map(gives_margins, evaluators.values()))


def donor_digests(donor: Path) -> dict[str, str]:
    """Return name -> digest of the files beside the weights that shape how models are scored."""
    names = ("config.json", *DONOR_FILES)
    return {name: file_digest(donor / name) for name in names if (donor / name).is_file()}


def file_digest(path: Path) -> str:
    """Return the 32-hex-digit digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def data_files(tasks: Tasks) -> list[Path]:
    """Return every file the search's evaluators read, code included."""
    files: set[Path] = set()
    for evaluator in map(whole_of, tasks.search.values()):
        values = [getattr(evaluator, item.name) for item in dataclasses.fields(evaluator)]  # type: ignore[arg-type]
        code = getattr(evaluator, "code_files", tuple)
        files |= {value for value in (*values, *code()) if isinstance(value, Path)}
    return sorted(path for path in files if path.is_file())


def data_digests(tasks: Tasks) -> dict[str, str]:
    """Return path -> digest of every file the search's evaluators read; see `data_files`."""
    return {str(path): file_digest(path) for path in data_files(tasks)}


def header_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one line per thing that changed between two headers, the most specific key first."""
    lines: list[str] = []

    def walk(path: str, old: Any, new: Any) -> None:
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            for key in sorted({*old, *new}):
                walk(f"{path}.{key}" if path else str(key), old.get(key), new.get(key))
        elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            for index, (before, after) in enumerate(zip(old, new, strict=True)):
                walk(f"{path}.{index}", before, after)
        elif old != new:
            lines.append(f"{path} was {old!r:.300}, is {new!r:.300}")

    walk("", dict(then), dict(now))
    return lines
