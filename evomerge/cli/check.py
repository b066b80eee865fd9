"""`evomerge check`: everything that can be known before the first evaluation."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from evomerge.cli.search import idle_workers
from evomerge.config.build import build_objectives, needs_span
from evomerge.config.manifest import search_manifest
from evomerge.config.merge_choice import method_text
from evomerge.config.model_size import model_bytes, specs_bytes
from evomerge.config.offline import check_offline
from evomerge.config.schema import RunConfig, load_config
from evomerge.config.session import Prepared, preflight
from evomerge.config.yaml_file import dump_yaml
from evomerge.core.choice_space import ChoiceSpace, Space
from evomerge.merging.manifest import summary_of


def check_command(
    config_path: Path,
    *,
    offline: bool,
    show_config: bool,
    overrides: list[str],
    as_json: bool,
) -> None:
    """Print what a search of this config would do, or fail with what is wrong.

    Args:
        config_path: The config.
        offline: Open neither models nor data: say only whether the file itself is right.
        show_config: Print the config with every default instead.
        overrides: `--set` texts.
        as_json: JSON instead of lines; of the config instead of YAML.
    """
    config, base_dir = load_config(config_path, overrides), config_path.resolve().parent
    if offline:
        resolved = check_offline(config, base_dir)
        if show_config:
            _print_config(resolved, as_json=as_json)
        elif as_json:
            print(json.dumps({"config": config.name, "offline": True}))
        else:
            print(f"✓ {config_path}: the file is right; models and data were not looked at")
        return
    prepared = preflight(config, base_dir)
    if show_config:
        _print_config(prepared.config, as_json=as_json)
        return
    facts = describe(prepared)
    if as_json:
        print(json.dumps(facts))
        return
    for line in lines(facts):
        print(line)


def _print_config(config: RunConfig, *, as_json: bool) -> None:
    body = config.model_dump(mode="json")
    print(json.dumps(body) if as_json else dump_yaml(body), end="\n" if as_json else "")


def describe(prepared: Prepared) -> dict[str, Any]:
    """Return the facts of a checked config, JSON-ready."""
    space, search = prepared.models.space, prepared.space
    merged, layers = space.merged, prepared.models.layers
    n_bytes = model_bytes(prepared.models)
    largest = max(t.spec.n_elements for t in merged)
    config = prepared.config
    manifest = search_manifest(search, prepared.models)
    return {
        "config": config.name,
        "models": {str(r["id"]): r["lora"] or r["model"] for r in prepared.models.record},
        "merged_tensors": len(merged),
        "merged_elements": space.n_elements,
        "copied": dict(Counter(t.reason for t in space.tensors if t.action == "copy")),
        "left_out": dict(space.left_out),
        "paths": _paths(search, manifest["tensors"]),
        "layers": None if layers is None else dict(layers.inputs.n_layers),
        "transforms": [
            {"sources": made["sources"], "paths": summary_of(made["tensors"])}
            for made in manifest["transforms"]
        ],
        "merge": method_text(config.merge),
        "groups": _groups(search),
        "dimensions": None if needs_span(config) else search.dimension,
        "algorithm": config.algorithm["name"],
        "founders": len(search.founders),
        "budget": config.budget.evaluations,
        "constraints": [str(item) for item in build_objectives(config).constraints],
        "tasks": dict(prepared.tasks.sizes),
        "held_out": {name: e.n_examples() for name, e in prepared.tasks.held_out.items()},
        "example_evaluations": config.budget.evaluations * sum(prepared.tasks.sizes.values()),
        "executor": config.runtime.executor,
        "workers": config.runtime.workers if config.runtime.executor == "ray" else 1,
        "look_ahead": config.search.look_ahead,
        # resident model + one tensor name over all sources and a float32 accumulator; or layers
        "memory_per_worker_bytes": 0
        if all(evaluator.auto_class is None for evaluator in prepared.tasks.search.values())
        else n_bytes + 4 * largest * (len(space.sources) + 2)
        if layers is None
        else specs_bytes(layers.tensors()),
        "export_bytes": n_bytes,
        "free_disk_bytes": shutil.disk_usage(Path.cwd()).free,
    }


def lines(facts: dict[str, Any]) -> list[str]:
    """Return the facts for people, one finding per line: ✓ fine, then ! look at this."""
    if facts["layers"] is not None:
        own = ", ".join(f"{n} of {name}" for name, n in facts["layers"].items())
        found = [f"✓ {len(facts['models'])} models; {facts['merge']} of their layers: {own}"]
    else:
        found = [
            f"✓ {len(facts['models'])} models aligned: {facts['merged_tensors']} tensors merged "
            f"({facts['merged_elements']:,} elements), {sum(facts['copied'].values())} copied"
        ]
        found += [f"  copied: {reason} ({count})" for reason, count in facts["copied"].items()]
        found.append(f"✓ {facts['merge']}: {facts['paths']}")
    found += [
        f"✓ transform {', '.join(made['sources'])}: {made['paths']}" for made in facts["transforms"]
    ]
    size = (
        "the span of the models"
        if facts["dimensions"] is None
        else f"{_count(facts['dimensions'], 'dimension')} in {_groups_text(facts['groups'])}"
    )
    found.append(f"✓ search: {facts['algorithm']} over {facts['merge']}, {size}")
    examples = ", ".join(f"{task} {n}" for task, n in facts["tasks"].items())
    found.append(f"✓ examples: {examples}; {facts['example_evaluations']:,} scored in all")
    found += [f"✓ constraint: {text}" for text in facts["constraints"]]
    n_workers = facts["workers"]
    found.append(
        f"✓ {megabytes(facts['memory_per_worker_bytes'])} per worker, {_count(n_workers, 'worker')}"
    )
    return found + [f"! {warning}" for warning in warnings(facts)]


def _paths(search: Space, tensors: dict[str, Any]) -> str:
    """Return what happens to the tensors, once where every method treats them alike."""
    if not isinstance(search, ChoiceSpace):
        return summary_of(tensors)
    found = {label: summary_of(paths) for label, paths in tensors.items()}
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return "; ".join(f"{label} {text}" for label, text in found.items())


def _groups(search: Space) -> int | dict[str, int]:
    """Return the number of groups, or label -> number where the method is searched too."""
    if not isinstance(search, ChoiceSpace):
        return search.n_groups
    branches = zip(search.labels, search.branches, strict=True)
    return {label: branch.n_groups for label, branch in branches}


def _groups_text(groups: int | dict[str, int]) -> str:
    if isinstance(groups, int):
        return _count(groups, "group")
    numbers = sorted(set(groups.values()))
    if len(numbers) == 1:
        return f"{_count(numbers[0], 'group')} for each method"
    return ", ".join(f"{_count(n, 'group')} for {label}" for label, n in groups.items())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def warnings(facts: dict[str, Any]) -> list[str]:
    """Return what can be run and had better be looked at."""
    found = [f"left out of the merge: {name}: {why}" for name, why in facts["left_out"].items()]
    small = [task for task, n in facts["tasks"].items() if n < 100]
    if small:
        found.append(f"fewer than 100 examples in {', '.join(small)}: the search will overfit")
    missing = sorted(set(facts["tasks"]) - set(facts["held_out"]))
    if missing:
        found.append(f"no held_out examples for {', '.join(missing)}: scores will look too good")
    idle = idle_workers(facts["look_ahead"], facts["workers"])
    if idle:
        found.append(idle)
    if facts["export_bytes"] > facts["free_disk_bytes"]:
        found.append("not enough free disk here to export even one model")
    return found


def megabytes(n_bytes: int) -> str:
    """Return a rough size such as "about 1,234 MB"."""
    size = n_bytes / 2**20
    return "under 1 MB" if size < 1 else f"about {size:,.0f} MB"
