"""What a run's workers need, and the plan of where they go."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from evomerge.config.engines import engine_of, refuse_engines
from evomerge.config.model_size import merge_bytes, model_bytes, specs_bytes
from evomerge.config.models import OpenModels
from evomerge.config.schema import RunConfig, RuntimeConfig
from evomerge.evaluation.batching import ACCELERATOR_TOKENS, CPU_TOKENS, LOGITS_IN_MEMORY
from evomerge.evaluation.evaluator import Evaluator
from evomerge.evaluation.part import whole_of
from evomerge.merging.materialize import DTYPES
from evomerge.runtime.cluster_watch import Planner
from evomerge.runtime.node_facts import local_node
from evomerge.runtime.placement import default_look_ahead
from evomerge.runtime.placement_plan import ModelNeed, NodeFacts, Plan, Wishes, plan_workers
from evomerge.storage.untrusted_files import read_json_object

LEAST_TOKENS = 4096  # of a batch on a GPU; below that it idles
_WHOLE_GPU = 2**60
_LOGITS_BYTES = 2 * 4 * LOGITS_IN_MEMORY  # in float32, and their softmax


def worker_need(
    config: RunConfig, models: OpenModels, evaluators: Mapping[str, Evaluator]
) -> ModelNeed:
    """Return what one worker of a run needs; activations and KV cache are estimates.

    Per token of a batch: six states and three MLP widths of one layer, and the keys and values of
    all layers, in the model's dtype. Batches that turn out too large are halved while scoring.
    """
    space = models.space
    # As `worker_of` loads them: an engine holds the model once more.
    resident = {engine_of(e) or e.auto_class for e in evaluators.values() if e.auto_class}
    weights, merge = model_bytes(models), merge_bytes(models, config)
    if models.layers is not None:
        weights, merge = specs_bytes(models.layers.tensors()), 0
    # An engine fills the GPU it is on, and uses no other.
    has_engine = any(engine_of(e) for e in evaluators.values())
    said = dict(models.config or _config_of(models))
    per_token = _bytes_per_token(said, DTYPES[space.float_dtype].itemsize)
    logits = _LOGITS_BYTES if "vocab_size" in said else 0
    budgets = [getattr(whole_of(e), "batch_tokens", "auto") for e in evaluators.values()]

    def batch(auto: int, most: int | None = None) -> int:
        tokens = max((auto if b == "auto" else int(b) for b in budgets), default=auto)
        return per_token * min(tokens, most or tokens) + logits

    if not resident:
        return ModelNeed(space.n_elements, 0)
    return ModelNeed(
        space.n_elements,
        weights * len(resident),
        merge,
        least_bytes=batch(ACCELERATOR_TOKENS, LEAST_TOKENS),
        full_bytes=_WHOLE_GPU if has_engine else batch(ACCELERATOR_TOKENS),
        cpu_bytes=batch(CPU_TOKENS),
        divides=not has_engine,
    )


def _config_of(models: OpenModels) -> Mapping[str, Any]:
    path = models.donor / "config.json"
    return read_json_object(path) if path.is_file() else {}


def _bytes_per_token(config: Mapping[str, Any], itemsize: int) -> int:
    text = config.get("text_config")
    sizes = {**config, **(text if isinstance(text, dict) else {})}

    def size(key: str, otherwise: int = 0) -> int:
        value = sizes.get(key)
        return value if isinstance(value, int) and value > 0 else otherwise

    width, layers, heads = (
        size("hidden_size"),
        size("num_hidden_layers"),
        size("num_attention_heads", 1),
    )
    head = size("head_dim", width // heads)
    keys_and_values = 2 * layers * size("num_key_value_heads", heads) * head
    return itemsize * (6 * width + 3 * size("intermediate_size", 4 * width) + keys_and_values)


def wishes_of(runtime: RuntimeConfig) -> Wishes:
    """Return what a config fixes."""
    return Wishes(runtime.workers, runtime.gpus_per_worker, runtime.cpus_per_worker, runtime.device)


def planner_of(runtime: RuntimeConfig, need: ModelNeed) -> Planner:
    """Return what plans workers for nodes; one whose models are all on servers needs no GPU."""
    wishes = wishes_of(runtime)
    if not need.weight_bytes and wishes.gpus_per_worker is None:
        wishes = replace(wishes, gpus_per_worker=0.0)
    return partial(plan_workers, need=need, wishes=wishes)


def plan_of(
    config: RunConfig,
    models: OpenModels,
    evaluators: Mapping[str, Evaluator],
    *,
    insecure: bool = False,
) -> Plan | None:
    """Return where a run's Ray workers go; None for a search in this process.

    A cluster that runs elsewhere is joined for a moment and its nodes are asked.

    Raises:
        PlacementError: No node can hold a worker.
        ExecutorError: The cluster cannot be asked.
    """
    runtime = config.runtime
    if runtime.executor != "ray":
        return None
    nodes: Sequence[NodeFacts]
    if runtime.address is None:
        nodes = [local_node()]
    else:
        from evomerge.runtime.ray_cluster import cluster_nodes

        nodes = cluster_nodes(runtime.address, insecure=insecure)
    return planner_of(runtime, worker_need(config, models, evaluators))(
        nodes or [NodeFacts("the cluster", 0.0, 0)]
    )


def planned(
    config: RunConfig,
    models: OpenModels,
    evaluators: Mapping[str, Evaluator],
    *,
    insecure: bool,
) -> tuple[RunConfig, Plan | None]:
    """Return the config with what `plan_of` decides, and the plan; see `with_plan`.

    A cluster elsewhere is not asked, and the plan is None, where nothing is left to be decided.

    Raises:
        ConfigError: An engine is placed as none can be, or no node can hold a worker.
        ExecutorError: The cluster cannot be asked.
    """
    runtime = config.runtime
    refuse_engines(
        evaluators, models, device=runtime.device, gpus_per_worker=runtime.gpus_per_worker
    )
    is_open = config.search.look_ahead is None or runtime.address is None
    plan = plan_of(config, models, evaluators, insecure=insecure) if is_open else None
    return with_plan(config, plan), plan


def with_plan(config: RunConfig, plan: Plan | None) -> RunConfig:
    """Return the config with the workers and the look-ahead that follow from a plan.

    On a cluster that runs elsewhere the number of workers stays open where nobody gave one: it
    follows the nodes that come and go. The look-ahead is fixed for good, for results depend on it.
    """
    if plan is None:
        return config
    runtime, search = config.runtime, config.search
    if runtime.address is None:
        runtime = runtime.model_copy(update={"workers": plan.workers})
    if search.look_ahead is None:
        ahead = default_look_ahead(plan.workers)
        search = search.model_copy(update={"look_ahead": ahead})
    return config.model_copy(update={"runtime": runtime, "search": search})


def plan_facts(plan: Plan) -> dict[str, Any]:
    """Return a plan, JSON-ready; bytes are what one worker takes of memory or of each GPU."""
    need = plan.need
    rows = []
    for share in plan.shares:
        gpus = share.shape.gpus
        takes = (
            need.on_cpu()
            if not gpus
            else need.on_gpu(comfortable=gpus < 1)
            if gpus <= 1
            else need.on_each_of(math.ceil(gpus))
        )
        rows.append(
            {
                "node": share.node.name,
                "cpus": share.node.cpus,
                "memory_bytes": share.node.memory,
                "gpu_bytes": list(share.node.gpus),
                "workers": share.workers,
                "gpus_per_worker": gpus if share.workers else None,
                "cpus_per_worker": share.shape.cpus,
                "bytes_per_worker": takes,
                "reason": share.reason,
            }
        )
    return {
        "workers": plan.workers,
        "without_room": plan.waiting,
        "is_elastic": plan.is_elastic,
        "nodes": rows,
    }


def plan_table(facts: Mapping[str, Any]) -> list[str]:
    """Return `plan_facts` as lines of a table; equal nodes share a row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for row in facts["nodes"]:
        gpus = row["gpu_bytes"]
        has = f"{row['cpus']:g} CPUs, {row['memory_bytes'] / 2**30:.0f} GiB"
        if gpus:
            has += f", {len(gpus)} GPUs of {min(gpus) / 2**30:.0f} GiB"
        each = (
            f"{row['gpus_per_worker']:g} GPU"
            if row["gpus_per_worker"]
            else f"{row['cpus_per_worker']:g} CPU"
        )
        gets = (
            f"{row['workers']} x {each} ({row['bytes_per_worker'] / 2**30:.1f} GiB)"
            if row["workers"]
            else f"0: {row['reason']}"
        )
        rows.setdefault((has, gets), []).append(row["node"])
    table = [
        (names[0] if len(names) == 1 else f"{len(names)} nodes", has, gets)
        for (has, gets), names in rows.items()
    ]
    table.insert(0, ("node", "has free", "workers"))
    widths = [max(len(row[i]) for row in table) for i in range(2)]
    lines = [f"  {a:{widths[0]}}  {b:{widths[1]}}  {c}" for a, b, c in table]
    if facts["without_room"]:
        lines.append(f"  {facts['without_room']} more wait for nodes that join")
    return lines
