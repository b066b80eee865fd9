"""Run folders of any size, written with the store that searches write with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evomerge.config.schema import parse_config
from evomerge.config.yaml_file import dump_yaml
from evomerge.core.candidate import Candidate, Evaluation
from evomerge.core.objective import Objective
from evomerge.core.recipe import Recipe
from evomerge.search.events import asked_event, told_event
from evomerge.storage.run_store import RunFolder, RunStore

HOSTILE = (
    '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=2">'
    '<a href="javascript:window.hacked=3">a</a> %{x} {data} $x$ \u2028 &lt;b&gt;'
)


@dataclass(frozen=True)
class Plan:
    """What a synthetic run holds.

    Attributes:
        n: Candidates.
        names: Of the objectives, each of one task.
        examples: Per task.
        layers: Of the models.
        experts: Their names.
        word: In origins, errors, settings and paths: where a run's strings come from strangers.
        failing: Every so many candidates fail; 0: none.
    """

    n: int = 60
    names: tuple[str, ...] = ("maths", "chat")
    examples: int = 40
    layers: int = 4
    experts: tuple[str, ...] = ("maths-7b", "chat-7b")
    word: str = "crossover"
    failing: int = 13


def write_run(path: Path, plan: Plan) -> RunFolder:
    """Write a finished run: parents first, then offspring that drift towards a curved front."""
    tasks = {f"task{m}": plan.examples for m in range(len(plan.names))}
    config = _config(plan, tasks, path)
    folder = RunFolder(path)
    tensors = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(plan.layers)]
    sources = [
        {"id": name, "model": f"/models/{plan.word}/{name}", "lora": None, "revision": None,
         "digest": f"{i:032x}", "files": [], "tensors": {}}
        for i, name in enumerate(("base", *plan.experts))
    ]  # fmt: skip
    folder.create({
        "sources.json": json.dumps(sources).encode(),
        "manifest.json": json.dumps({"tensors": dict.fromkeys(tensors, "merged")}).encode(),
        "config.yaml": dump_yaml(config.model_dump(mode="json")).encode(),
    })  # fmt: skip
    header = {
        "kind": "header", "format": 1, "config": config.replay_part(), "tasks": tasks,
        "sources": {source["id"]: source["digest"] for source in sources},
        "data": {f"/data/{plan.word}.jsonl": "0" * 32}, "founders": 1 + len(plan.experts),
        "warm": 0, "versions": {"evomerge": "0.1.0", "torch": plan.word},
    }  # fmt: skip
    store = RunStore(folder, header=header, tasks=tasks)
    append(store, plan, range(plan.n))
    store.close()
    return folder


def append(store: RunStore, plan: Plan, ids: range) -> None:
    """Write candidates into an open store, one told after another."""
    objectives = [Objective(name, {f"task{m}": 1.0}) for m, name in enumerate(plan.names)]
    for i in ids:
        candidate, evaluation = _scored(plan, i)
        store.append(asked_event(candidate))
        worker = f"worker-{i % 3}"
        if evaluation.error is not None:
            store.append(told_event(evaluation, None, -1, ""))
            store.note(f"candidate {i} failed worker={worker} attempt=1 seconds=0.5 error='…'")
            continue
        row, digest = store.append_scores(evaluation.flat_scores())
        values = [item.value(evaluation.scores) for item in objectives]
        store.append(told_event(evaluation, values, row, digest))
        store.note(f"candidate {i} scored worker={worker} attempt=1 seconds={2 + i % 5:.3f}")


def _scored(plan: Plan, i: int) -> tuple[Candidate, Evaluation]:
    rng = np.random.default_rng([7, i])
    k = len(plan.experts)
    names = ("base", *plan.experts)
    if i <= k:  # the models themselves
        weights = np.zeros((plan.layers, k))
        weights[:, i - 1] = float(i > 0)
        origin, parents = f"founder: {names[i]}", ()
    else:
        weights = rng.uniform(-0.2, 1.0, (plan.layers, k))
        origin = plan.word
        parents = tuple(int(p) for p in rng.integers(max(0, i // 2 - 5), i, 2))
    recipe = Recipe(
        "task_arithmetic", ("base", *plan.experts),
        {"weights": weights, "lambda_": np.ones(plan.layers)}, "layer",
        settings={"normalize": False, "note": plan.word},
    )  # fmt: skip
    candidate = Candidate(i, recipe, parents, 0, origin)
    if plan.failing and i % plan.failing == plan.failing - 1:
        return candidate, Evaluation(candidate, error=f"candidate {i}: no luck: {plan.word}")
    # Ability lies on a sphere whose radius grows as the search goes on.
    way = np.abs(rng.normal(size=len(plan.names)))
    ability = way / np.linalg.norm(way) * (0.5 + 0.45 * (i / max(plan.n, 1)) ** 0.5)
    hardness = np.random.default_rng(3).uniform(size=plan.examples)
    scores = {
        f"task{m}": (hardness < ability[m] + 0.05 * rng.normal(size=plan.examples)).astype("f4")
        for m in range(len(plan.names))
    }
    return candidate, Evaluation(candidate, scores, None, f"{i:032x}")


def _config(plan: Plan, tasks: dict[str, int], path: Path):
    return parse_config(
        {
            "name": path.name, "seed": 3,
            "base_model": {"name": "base", "model": f"/models/{plan.word}/base"},
            "models": [
                {"name": name, "model": f"/models/{plan.word}/{name}"} for name in plan.experts
            ],
            "merge": {
                "name": "task_arithmetic", "groups": "layer",
                "weights": {"low": -0.2, "high": 1.0, "initial": 0.5},
            },
            "algorithm": {"name": "nsga2", "note": plan.word},
            "tasks": [{"name": task, "evaluator": "perplexity"} for task in tasks],
            "objectives": [
                {"name": name, "tasks": {f"task{m}": 1.0}} for m, name in enumerate(plan.names)
            ],
            "budget": {"evaluations": plan.n},
        },
        "synthetic",
    )  # fmt: skip
