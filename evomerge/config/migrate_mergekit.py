"""A mergekit-evolve config -> a config of ours.

Source: docs/evolve.md and mergekit/evo/{config,genome}.py of mergekit 0.1.4 (its format; the last
version before it was deprecated).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.config.mergekit_fields import parse_model
from evomerge.config.mergekit_settings import settings_of
from evomerge.config.migrated import Migrated, model_section, take
from evomerge.config.schema import ModelConfig
from evomerge.config.starter import placed, run_name, unique
from evomerge.config.yaml_file import read_yaml
from evomerge.errors import ConfigError, nearest
from evomerge.storage.named_path import named_path

EVALUATIONS = 100  # `--max-fevals`
_METHODS = ("linear", "task_arithmetic", "ties", "dare_ties", "slerp")
_NEED_BASE = ("task_arithmetic", "ties", "dare_ties")
_NORMALIZED = ("linear", "ties", "dare_ties")  # unless the file says otherwise


def migrate_mergekit_evolve(
    file: Path,
    folder: Path,
    *,
    name: str,
    n_layers: int | None,
    evaluations: int | None,
    include_path: str | None = None,
) -> Migrated:
    """Return the config that searches what mergekit-evolve would.

    Args:
        file: Its YAML.
        folder: Where the new config will lie.
        name: Of the run.
        n_layers: Of the models; None: as a model on this disk has.
        evaluations: Budget; None: mergekit-evolve's default.
        include_path: Its `--task-search-path`, from the current folder.

    Raises:
        ConfigError: The file is no such config, or a number of layers is needed.
    """
    read = read_yaml(file)
    done: set[str] = set()
    genome = take(read, done, "genome")
    if not isinstance(genome, dict):
        raise ConfigError(f"{file}: key 'genome' is missing; is this a mergekit-evolve config?")
    found = Migrated(file, {"version": 1, "name": run_name(name), "seed": 0})
    method = _models_and_merge(found, genome, folder, n_layers)
    found.body["algorithm"] = {"name": "cma_es"}
    found.remark(
        "algorithm",
        "CMA-ES as before, with a seed of its own and within the ranges above: there the search "
        "was not bounded, and signs and densities were cut off afterwards.",
    )
    _tasks(found, read, done, None if include_path is None else placed(include_path, folder))
    found.body["budget"] = {"evaluations": evaluations or EVALUATIONS}
    if evaluations is None:
        found.remark("budget", f"--max-fevals stands on no file; {EVALUATIONS} was its default.")
    if take(read, done, "random_init", False):
        found.remark(
            "algorithm", "random_init: true is not carried over; the search begins with founders."
        )
    for key in sorted(set(read) - done):
        found.remark("", f"{key}: not understood, and left out.")
    if method == "slerp" and len(found.body["models"]) == 2:
        found.remark("merge", "t lies in [0, 1] whichever model comes first; there t was < 0.5.")
    return found


def _models_and_merge(
    found: Migrated, genome: Mapping[str, Any], folder: Path, n_layers: int | None
) -> str:
    file, done = found.file, set[str]()
    method = take(genome, done, "merge_method")
    if method not in _METHODS:
        raise ConfigError(
            f"{file}: genome.merge_method: {method!r} is not one of mergekit-evolve's."
            f"{nearest(str(method), _METHODS)} Known: {', '.join(_METHODS)}."
        )
    listed = take(genome, done, "models", [])
    if not isinstance(listed, list) or not listed:
        raise ConfigError(f"{file}: genome.models: expected a list of models")
    models = [parse_model(item, f"{file}: genome.models.{i}") for i, item in enumerate(listed)]
    given = take(genome, done, "base_model")
    base = None if given is None else parse_model(given, f"{file}: genome.base_model")
    if base is None and method in _NEED_BASE:
        raise ConfigError(f"{file}: genome.base_model: {method} needs one")
    base, experts = _roles(found, method, base, models)
    if base is not None:
        found.body["base_model"] = model_section(base, folder)
    found.body["models"] = [model_section(model, folder) for model in experts]
    normalize = take(genome, done, "normalize", method in _NORMALIZED)
    negative = bool(take(genome, done, "allow_negative_weights", False))
    n_weights = len(experts) + (base is not None and method not in _NEED_BASE)
    shape = {
        "granularity": take(genome, done, "layer_granularity", 0),
        "smooth": bool(take(genome, done, "smooth", False)),
        "filters": take(genome, done, "filters", []),
    }
    depth = n_layers or _depth([*models, *([base] if base else [])])
    found.body["merge"] = _merge(
        found, str(method), shape, depth, normalize=normalize, negative=negative, width=n_weights
    )
    tokenizer = take(genome, done, "tokenizer_source")
    if tokenizer is not None:
        found.remark(
            "models",
            f"tokenizer_source: {tokenizer} is not carried over: the tokenizer is that of the "
            f"{'base model' if base else 'first model'}.",
        )
    for key in sorted(set(genome) - done):
        found.remark("", f"genome.{key}: not understood, and left out.")
    return str(method)


def _roles(
    found: Migrated, method: str, base: ModelConfig | None, models: list[ModelConfig]
) -> tuple[ModelConfig | None, list[ModelConfig]]:
    """Return base and experts as the method takes them here."""
    is_listed = base in models
    if method in _NEED_BASE:
        if is_listed:
            found.remark(
                "models",
                "The base stood among the models, too. Its own change is zero, so it is left out; "
                "with `normalize` its weight made the others smaller.",
            )
        return base, [model for model in models if model != base]
    if method == "linear" and is_listed:
        return base, [model for model in models if model != base]
    if base is not None and not is_listed:
        found.remark(
            "models", f"base_model {base.model} has no part in {method} merges, and is left out."
        )
    return None, models


def _merge(
    found: Migrated,
    method: str,
    shape: Mapping[str, Any],
    depth: int | None,
    *,
    normalize: bool,
    negative: bool,
    width: int,
) -> dict[str, Any]:
    groups, curve = _groups(found, shape, depth)
    if method == "slerp":
        if width == 2:
            return {"name": "slerp", "groups": groups, "t": [0.0, 1.0], "compat": "mergekit"}
        found.remark(
            "merge",
            f"slerp of {width} models: mergekit-evolve picked two of them per block. Here nlerp "
            "mixes all of them on the sphere.",
        )
        return {"name": "nlerp", "groups": groups, "weights": [0.0, 1.0]}
    high = 1.0 if normalize else 1.5
    low = -1.0 if negative else 0.0
    weights: dict[str, Any] = {"low": low, "high": high, "initial": min(1.0 / width, high)}
    flags = {"normalize": normalize}
    merge = {"name": method, "groups": groups, "weights": weights | curve}
    if method in ("ties", "dare_ties"):
        merge["density"] = {"low": 0.05, "high": 1.0, "initial": 1.0} | curve
        found.remark("merge", "One density for all models; there each model had its own.")
    found.remark("merge", "The merged model keeps the models' dtype; there it was always bfloat16.")
    return merge | settings_of(method, flags, {})


def _groups(
    found: Migrated, shape: Mapping[str, Any], depth: int | None
) -> tuple[str, dict[str, int]]:
    """Return our grouping, and the knots of a curve for `smooth`."""
    granularity, filters = shape["granularity"], shape["filters"]
    if isinstance(granularity, bool) or not isinstance(granularity, int):
        raise ConfigError(
            f"{found.file}: genome.layer_granularity is {granularity!r}, not a number"
        )
    if filters:
        kinds = ", ".join(map(str, filters))
        groups = "module" if granularity > 0 else "kind"
        found.remark(
            "merge",
            f"filters: {kinds} and all else had parameters of their own. `groups: {groups}` is "
            "the nearest: one row per kind of tensor"
            + (" and layer: more dimensions" if granularity > 0 else "")
            + ". `layer` or `global` have fewer.",
        )
        if shape["smooth"] and granularity > 0:
            found.remark("merge", "smooth: true is not carried over; curves follow whole layers.")
        return groups, {}
    if granularity < 1:
        return "global", {}
    if depth is None:
        raise ConfigError(
            f"{found.file}: genome.layer_granularity: {granularity} cuts the layers into blocks, "
            "and none of the models is on this disk to count them; give --layers N (32 for most "
            "7B models)"
        )
    n_blocks, rest = divmod(depth, granularity)
    if rest:
        raise ConfigError(
            f"{found.file}: genome.layer_granularity: {granularity} does not divide {depth} layers"
        )
    if shape["smooth"] and n_blocks > 1:
        return "layer", {"curve": n_blocks}
    found.remark(
        "merge",
        f"{n_blocks} blocks of {granularity} of {depth} layers. Embeddings and head have rows of "
        "their own; there they belonged to the first and last block.",
    )
    return f"block:{n_blocks}", {}


def _depth(models: Sequence[ModelConfig]) -> int | None:
    """Return the number of layers of the first model that is a folder, from the current one."""
    for model in models:
        try:
            config = json.loads((named_path(model.model) / "config.json").read_bytes())
        except (OSError, ValueError):
            continue
        depth = config.get("num_hidden_layers") if isinstance(config, dict) else None
        if isinstance(depth, int):
            return depth
    return None


def _tasks(
    found: Migrated, read: Mapping[str, Any], done: set[str], include_path: str | None
) -> None:
    listed = take(read, done, "tasks", [])
    if not isinstance(listed, list) or not listed:
        raise ConfigError(f"{found.file}: tasks: expected a list of lm-eval tasks")
    common = {
        "include_path": include_path,
        "num_fewshot": take(read, done, "num_fewshot"),
        "limit": take(read, done, "limit"),
        "apply_chat_template": bool(take(read, done, "apply_chat_template", True)),
        "fewshot_as_multiturn": bool(take(read, done, "fewshot_as_multiturn", True)),
    }
    settings = {key: value for key, value in common.items() if value is not None}
    if take(read, done, "shuffle", False):
        found.remark(
            "tasks", "shuffle: true is not carried over: `limit` takes the first documents."
        )
    entries = [_entry(item, f"{found.file}: tasks.{i}") for i, item in enumerate(listed)]
    names = unique([name for name, _, _ in entries])
    found.body["tasks"] = [
        {"name": own, "evaluator": {"name": "lm_eval", "task": task, "metric": metric, **settings}}
        for own, (task, metric, _) in zip(names, entries, strict=True)
    ]
    weights = {own: abs(w) for own, (_, _, w) in zip(names, entries, strict=True) if w}
    if not weights:
        raise ConfigError(f"{found.file}: tasks: every weight is 0")
    found.body["objectives"] = [{"name": "score", "tasks": weights}]
    found.remark(
        "tasks",
        "Add `held_out: {rows: [A, B]}` to each task: what was searched on looks too good.",
    )
    negative = [own for own, (_, _, w) in zip(names, entries, strict=True) if w < 0]
    if negative:
        found.remark(
            "objectives",
            f"Weights of {', '.join(negative)} were negative, for metrics of which less is better; "
            "evomerge negates those metrics itself, so the weights are positive here.",
        )
    found.remark(
        "objectives",
        "The weighted sum, as before, divided by the weights' sum. Without this section and with "
        "`algorithm: nsga2` every task is an objective, and the search finds a front.",
    )


def _entry(item: Any, where: str) -> tuple[str, str, float]:
    """Return task, metric and weight."""
    body = {"name": item} if isinstance(item, str) else item
    if not isinstance(body, dict) or not isinstance(body.get("name"), str):
        raise ConfigError(f"{where}: expected the name of a task, or a mapping with `name:`")
    weight = body.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise ConfigError(f"{where}.weight is {weight!r}, expected a number")
    return body["name"], str(body.get("metric", "acc,none")), float(weight)
