"""A mergenetic config -> a config of ours.

The file does not say how models are merged; its scripts do: one model with the base by SLERP, more
by DARE-TIES.

Source: mergenetic/utils.py (Config, ConfigLmEval), experiments/evolutionary-merging-lm-harness and
configs of mergenetic 0.1.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.config.mergekit_settings import settings_of
from evomerge.config.migrated import Migrated, take
from evomerge.config.starter import placed, run_name, unique
from evomerge.config.yaml_file import read_yaml
from evomerge.errors import ConfigError
from evomerge.runtime.placement import is_gpu

_SAMPLES = 20  # `n_samples`
_IGNORED = {
    "path_to_store_config": "the run goes to populations/<name>",
    "path_to_store_merged_model": "candidates are not written to disk",
    "bench": "it chose an estimator of accuracy",
    "task_type": "it chose an evaluator",
    "force_evaluation": "nothing is scored twice",
    "thetas": "there is no estimator of ability",
}


def migrate_mergenetic(
    file: Path, folder: Path, *, name: str, tasks: list[dict[str, Any]], evaluations: int | None
) -> Migrated:
    """Return the config that searches what mergenetic's scripts would.

    Args:
        file: Its YAML.
        folder: Where the new config will lie.
        name: Of the run, where the file has no `run_id`.
        tasks: A `tasks:` section that replaces the file's; [] for the file's own.
        evaluations: Budget; None: population size times generations.

    Raises:
        ConfigError: The file is no such config, or scores with code of mergenetic's own.
    """
    read = read_yaml(file)
    done: set[str] = set()
    run = run_name(str(take(read, done, "run_id", name)))
    seed = take(read, done, "seed", 0)
    found = Migrated(file, {"version": 1, "name": run, "seed": seed})
    n_experts = _models(found, read, done, folder)
    found.body["merge"] = _merge(found, n_experts)
    population = _count(found, take(read, done, "pop_size", 20), "pop_size")
    n_generations = _count(found, take(read, done, "n_iter", 10), "n_iter")
    found.body["algorithm"] = {"name": "nsga2", "population_size": max(population, 2)}
    found.body["tasks"] = tasks or _tasks(found, read, done, folder)
    done |= {"tasks", "langs", "datasets", "metric", "n_samples", "additional_templates_folder"}
    found.body["budget"] = {"evaluations": evaluations or population * n_generations}
    found.remark("budget", f"pop_size {population} times n_iter {n_generations}, as there.")
    device = str(take(read, done, "device", "auto"))
    known = device == "cpu" or is_gpu(device)
    found.body["runtime"] = {"executor": "in-process", "device": device if known else "auto"}
    _remark_rest(found, read, done)
    return found


def _models(found: Migrated, read: Mapping[str, Any], done: set[str], folder: Path) -> int:
    listed = take(read, done, "models")
    models = list(listed.values()) if isinstance(listed, dict) else listed
    if not isinstance(models, list) or not models or not all(isinstance(m, str) for m in models):
        raise ConfigError(
            f"{found.file}: models: expected a list or mapping of models; is this a mergenetic "
            "config?"
        )
    base = take(read, done, "base_model")
    if not isinstance(base, str):
        raise ConfigError(f"{found.file}: base_model is missing")
    experts = list(dict.fromkeys(model for model in models if model != base))
    if not experts:
        raise ConfigError(f"{found.file}: models: there is none but the base")
    if len(experts) < len(models):
        found.remark("models", "The base stood among the models, too; its own change is zero.")
    names: list[str | None] = [None] * len(experts)
    if isinstance(listed, dict):
        by_model = {str(model): str(key) for key, model in reversed(listed.items())}
        names = [by_model[model] for model in experts]
    found.body["base_model"] = placed(base, folder)
    found.body["models"] = [
        ({} if name is None else {"name": name}) | {"model": placed(model, folder)}
        for name, model in zip(names, experts, strict=True)
    ]
    dtype = take(read, done, "dtype")
    if dtype is not None:
        found.remark("models", f"dtype {dtype} is not carried over: merges keep the models' dtype.")
    return len(experts)


def _merge(found: Migrated, n_experts: int) -> dict[str, Any]:
    if n_experts == 1:
        found.remark(
            "merge",
            "SLERP of base and model with t on five knots over the layers, in whole tenths and "
            "apart for attention, MLP and the rest. Here t is continuous and one curve for all; "
            "`groups: module` without `curve` has one t per kind and layer.",
        )
        curve = {"low": 0.0, "high": 1.0, "curve": 5}
        return {"name": "slerp", "groups": "layer", "t": curve, "compat": "mergekit"}
    found.remark(
        "merge",
        "DARE-TIES, one weight per model. One density for all models; there each had its own.",
    )
    body = {"name": "dare_ties", "groups": "global", "weights": [0.0, 1.0], "density": [0.05, 1.0]}
    return body | settings_of("dare_ties", {}, {})


def _tasks(
    found: Migrated, read: Mapping[str, Any], done: set[str], folder: Path
) -> list[dict[str, Any]]:
    tasks = take(read, done, "tasks")
    if tasks is None:
        raise ConfigError(
            f"{found.file}: has no lm-eval `tasks`; mergenetic scores its `datasets` with code of "
            'its own. Write them as JSON lines {"prompt": …, "answer": …} and give --task FILE'
        )
    search, test = _by_language(tasks, found.file)
    n_samples = _count(found, take(read, done, "n_samples", _SAMPLES), "n_samples")
    shared: dict[str, Any] = {"limit": n_samples}
    metric = take(read, done, "metric")
    if metric is not None:
        shared["metric"] = str(metric)
    batch = take(read, done, "eval_batch_size")
    if batch is not None:
        shared["batch_size"] = _count(found, batch, "eval_batch_size")
    templates = take(read, done, "additional_templates_folder")
    if templates is not None:
        shared["include_path"] = _templates(found, str(templates), folder)
    found.remark(
        "tasks",
        f"The first {n_samples} documents of each task, where mergenetic drew them at random "
        "without a seed; 200 or more are much less overfitted.",
    )
    sections = []
    same = []
    for name, (key, task) in zip(unique(list(search)), search.items(), strict=True):
        body: dict[str, Any] = {
            "name": name,
            "evaluator": {"name": "lm_eval", "task": task, **shared},
        }
        if test.get(key, task) != task:
            body["held_out"] = {"task": test[key]}
        elif key in test:
            same.append(name)
        sections.append(body)
    if same:
        found.remark(
            "tasks",
            f"Tested on the rest of {', '.join(same)} there: replace `limit` by `rows: [0, "
            f"{n_samples}]` and add `held_out: {{rows: [{n_samples}, B]}}`.",
        )
    return sections


def _count(found: Migrated, value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{found.file}: {key} is {value!r}, expected a number of at least 1")
    return value


def _by_language(tasks: Any, file: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return what is searched on and what is tested on: key -> task."""
    if isinstance(tasks, list):
        return {str(task): str(task) for task in tasks}, {}
    if not isinstance(tasks, dict) or not isinstance(tasks.get("search"), dict):
        raise ConfigError(f"{file}: tasks: expected a list, or mappings `search` and `test`")
    # "base" names what the base model is measured on, beside the search.
    search = {str(k): str(v) for k, v in tasks["search"].items() if k != "base"}
    if not search:
        raise ConfigError(f"{file}: tasks.search: names no task")
    test = tasks.get("test")
    return search, {str(k): str(v) for k, v in test.items()} if isinstance(test, dict) else {}


def _templates(found: Migrated, templates: str, folder: Path) -> str:
    """Return the folder of task files: mergenetic looks for it in its project's root."""
    for root in (Path(), *found.file.absolute().parents):
        if (root / templates).is_dir():
            return placed(str(root / templates), folder)
    found.remark(
        "tasks", f"include_path: there is no {templates} near {found.file.name}; correct it."
    )
    return templates


def _remark_rest(found: Migrated, read: Mapping[str, Any], done: set[str]) -> None:
    mode = take(read, done, "mode")
    if mode is not None:
        found.remark(
            "tasks",
            f"mode: {mode} estimated accuracy from the samples; here the samples are the score. "
            "`racing: paired` stops hopeless candidates early.",
        )
    if take(read, done, "load_in_4bit", False):
        found.remark(
            "runtime", "load_in_4bit: not carried over; what is scored is what is exported."
        )
    done.add("eval_batch_size")
    for key in sorted(set(read) - done):
        reason = _IGNORED.get(key, "not understood")
        found.remark("", f"{key}: left out; {reason}.")
