"""`evomerge check`: everything that can be known before the first evaluation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evomerge.cli.search import idle_workers
from evomerge.config.build import build_objectives, needs_span
from evomerge.config.findings import Finding, findings_of
from evomerge.config.manifest import search_manifest
from evomerge.config.merge_choice import method_text
from evomerge.config.model_size import merge_bytes, model_bytes, specs_bytes
from evomerge.config.offline import check_offline
from evomerge.config.schema import RunConfig, load_config
from evomerge.config.session import Prepared, preflight
from evomerge.config.worker_plan import plan_facts, plan_of, plan_table
from evomerge.config.yaml_file import dump_yaml
from evomerge.core.choice_space import ChoiceSpace, Space
from evomerge.errors import ExecutorError, PreflightError
from evomerge.merging.manifest import summary_of
from evomerge.runtime.placement_plan import Plan

FAILED = PreflightError.exit_code


def check_command(
    config_path: Path,
    *,
    offline: bool,
    show_config: bool,
    dry_run: bool | None,
    overrides: list[str],
    as_json: bool,
) -> int:
    """Print what a search of this config would do, or fail with what is wrong.

    Args:
        config_path: The config.
        offline: Open neither models nor data: say only whether the file itself is right.
        show_config: Print the config with every default instead.
        dry_run: Score two examples of every task: yes, no, or (None) where it takes seconds.
        overrides: `--set` texts.
        as_json: JSON instead of lines; of the config instead of YAML.

    Returns:
        Exit code: 0, or 3 where a finding makes the search worthless (✗).
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
        return 0
    prepared = preflight(config, base_dir)
    if show_config:
        _print_config(prepared.config, as_json=as_json)
        return 0
    facts = describe(prepared)
    plan, trouble = _worker_plan(prepared)
    facts["placement"] = None if plan is None else plan_facts(plan)
    if plan is not None:
        facts["workers"] = plan.workers
    findings, figures = findings_of(
        prepared,
        worker_bytes=facts["memory_per_worker_bytes"],
        export_bytes=facts["export_bytes"],
        dry_run=dry_run,
    )
    if trouble:
        findings.append(Finding("!", "placement", trouble, "Ask again when the cluster is there"))
    idle = idle_workers(facts["look_ahead"], facts["workers"] or 1)
    if idle:
        findings.append(Finding("!", "workers", idle, "Leave search.look_ahead out"))
    if as_json:
        print(json.dumps({**facts, **figures, "findings": [asdict(item) for item in findings]}))
    else:
        print("\n".join([*plan_lines(facts), *finding_lines(findings)]))
    return FAILED if any(item.mark == "✗" for item in findings) else 0


def _worker_plan(prepared: Prepared) -> tuple[Plan | None, str]:
    """Return the plan of Ray workers, or why a cluster could not be asked for one."""
    try:
        return prepared.plan or plan_of(prepared.config, prepared.models, prepared.tasks.search), ""
    except ExecutorError as error:
        return None, str(error)


def _print_config(config: RunConfig, *, as_json: bool) -> None:
    body = config.model_dump(mode="json")
    print(json.dumps(body) if as_json else dump_yaml(body), end="\n" if as_json else "")


def describe(prepared: Prepared) -> dict[str, Any]:
    """Return the facts of a checked config, JSON-ready."""
    space, search = prepared.models.space, prepared.space
    merged, layers = space.merged, prepared.models.layers
    n_bytes = model_bytes(prepared.models)
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
        # resident model and what a merge needs; or layers
        "memory_per_worker_bytes": 0
        if all(evaluator.auto_class is None for evaluator in prepared.tasks.search.values())
        else n_bytes + merge_bytes(prepared.models, config)
        if layers is None
        else specs_bytes(layers.tensors()),
        "export_bytes": n_bytes,
    }


def plan_lines(facts: dict[str, Any]) -> list[str]:
    """Return what the search would do, for people."""
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
    if facts["placement"] is not None:
        found.append(f"✓ placement: {_count(facts['workers'], 'worker')}")
        found += plan_table(facts["placement"])
    found.append(f"✓ budget: {facts['example_evaluations']:,} examples scored in all")
    return found + [f"✓ constraint: {text}" for text in facts["constraints"]]


def finding_lines(findings: Sequence[Finding]) -> list[str]:
    """Return findings for people: ✓ first, then ! and ✗, each with what to do."""
    found = []
    for item in sorted(findings, key=lambda item: "✓!✗".index(item.mark)):
        found.append(f"{item.mark} {item.topic}: {item.text}")
        found += [f"  → {item.remedy}"] if item.remedy else []
    return found


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
