"""Which worker gets what: a pure plan from the size of a model and a list of nodes.

One worker holds one resident model. Where there are GPUs, workers use them and nothing else: on a
CPU scores differ in the last bits. Small models share a GPU, large ones take several of one node.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from evomerge.errors import ConfigError

# Of what is free: allocators round up, and fragments stay unused.
USABLE = 0.9
# The driver's context and libraries, for every process on every GPU it uses.
CONTEXT_BYTES = 600 * 2**20
# Interpreter, torch and transformers.
PROCESS_BYTES = 600 * 2**20
# More processes than this slow each other down on one GPU and gain nothing together.
MOST_SHARERS = 8
# Layers are not divided: the GPUs of one model cannot all be filled.
SPREAD_LOSS = 0.1
_GIB = 2**30


class PlacementError(ConfigError):
    """No node can hold a worker."""


@dataclass(frozen=True)
class NodeFacts:
    """What a node has to offer.

    Attributes:
        name: For people: host name or address.
        cpus: CPUs that workers may reserve.
        memory: Free bytes of main memory.
        gpus: Free bytes of each GPU.
        id: Ray's id of the node; "" for this machine.
        trouble: Why nothing can be planned for it; "" where it can.
    """

    name: str
    cpus: float
    memory: int
    gpus: tuple[int, ...] = ()
    id: str = ""
    trouble: str = ""

    @property
    def least_gpu(self) -> int:
        """Free bytes of the GPU that has least: which one a worker gets is not ours to say."""
        return min(self.gpus, default=0)


@dataclass(frozen=True)
class ModelNeed:
    """What one worker needs.

    Attributes:
        parameters: Of the merged model.
        weight_bytes: Resident model, in its dtype.
        merge_bytes: The largest tensor of all sources at once, with a float32 accumulator.
        least_bytes: Activations and KV cache of the smallest batch worth running.
        full_bytes: The same at the evaluators' whole token budget.
        cpu_bytes: The same at the budget of a CPU.
        divides: Whether layers can be divided over several GPUs; no engine does.
    """

    parameters: int
    weight_bytes: int
    merge_bytes: int = 0
    least_bytes: int = 0
    full_bytes: int = 0
    cpu_bytes: int = 0
    divides: bool = True

    def on_cpu(self) -> int:
        """Return the bytes of main memory of a worker without GPU."""
        return self.weight_bytes + self.merge_bytes + self.cpu_bytes + PROCESS_BYTES

    def on_gpu(self, *, comfortable: bool) -> int:
        """Return the bytes of one GPU that holds everything."""
        batch = max(self.full_bytes, self.least_bytes) if comfortable else self.least_bytes
        return self.weight_bytes + self.merge_bytes + batch + CONTEXT_BYTES

    def on_each_of(self, n_gpus: int) -> int:
        """Return the bytes of each of several GPUs that divide the layers between them."""
        layers = math.ceil(self.weight_bytes * (1 + SPREAD_LOSS) / n_gpus)
        return layers + self.merge_bytes + self.least_bytes + CONTEXT_BYTES


@dataclass(frozen=True)
class Wishes:
    """What the config says; None: as the plan decides.

    Attributes:
        workers: How many, over all nodes.
        gpus_per_worker: GPUs that each reserves; given, no memory is looked at.
        cpus_per_worker: CPUs that each reserves.
        device: As in the config.
    """

    workers: int | None = None
    gpus_per_worker: float | None = None
    cpus_per_worker: float = 1.0
    device: str = "auto"


@dataclass(frozen=True)
class WorkerShape:
    """What one worker reserves.

    Attributes:
        cpus: CPUs.
        gpus: GPUs: a fraction of one, or a whole number.
        node: Id of the node it has to be on; "" for any.
    """

    cpus: float
    gpus: float
    node: str = ""

    def bundle(self) -> dict[str, float]:
        """Return the reservation as Ray's autoscaler wants it."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


@dataclass(frozen=True)
class Share:
    """The workers of one node.

    Attributes:
        node: The node.
        workers: How many; 0 where it is not used.
        shape: What each reserves.
        reason: Why it is not used; "" where it is.
    """

    node: NodeFacts
    workers: int
    shape: WorkerShape
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """Workers on nodes.

    Attributes:
        need: What was planned for.
        shares: One per node, in the order of the nodes.
        waiting: Workers that were asked for and have no room yet.
        is_elastic: Whether nobody said how many: nodes that join get workers, too.
    """

    need: ModelNeed
    shares: tuple[Share, ...]
    waiting: int = 0
    is_elastic: bool = True

    @property
    def workers(self) -> int:
        """How many there are to be, those without room included."""
        return sum(share.workers for share in self.shares) + self.waiting

    def shapes(self) -> list[WorkerShape]:
        """Return the shape of every worker.

        Workers are bound to nodes only where it matters: where shapes differ, or where a node holds
        fewer than its CPUs or GPUs allow. Unbound ones can move when a node dies.
        """
        used = [share for share in self.shares if share.workers]
        free = replace((used or self.shares)[0].shape, node="")
        is_bound = any(
            (share.shape.cpus, share.shape.gpus) != (free.cpus, free.gpus)
            or share.workers < room(share.node, share.shape)
            for share in used
        )
        # Of a plan that does not fill its nodes, Ray may choose the places.
        is_bound &= self.is_elastic or self.waiting > 0 or len({s.shape.gpus for s in used}) > 1
        shapes = [s.shape if is_bound else free for s in used for _ in range(s.workers)]
        return shapes + [free] * self.waiting


def room(node: NodeFacts, shape: WorkerShape) -> int:
    """Return how many workers of a shape a node's CPUs and GPUs allow."""
    by_cpu = math.floor(node.cpus / shape.cpus + 1e-9)
    if not shape.gpus:
        return by_cpu
    if shape.gpus < 1:  # a fraction is of one GPU, never parts of two
        return min(by_cpu, len(node.gpus) * math.floor(1 / shape.gpus + 1e-9))
    return min(by_cpu, math.floor(len(node.gpus) / shape.gpus + 1e-9))


def plan_workers(nodes: Sequence[NodeFacts], need: ModelNeed, wishes: Wishes = Wishes()) -> Plan:
    """Return a plan that no node is too small for.

    Args:
        nodes: At least one.
        need: Of one worker.
        wishes: What the config fixes.

    Raises:
        PlacementError: No worker fits on any node; says what is missing and what helps.
    """
    wants_cpu = wishes.device == "cpu" or wishes.gpus_per_worker == 0
    on_gpu = not wants_cpu and (bool(wishes.gpus_per_worker) or any(node.gpus for node in nodes))
    sharers = _sharers_wanted(nodes, need, wishes.workers)
    shares = [_share(node, need, wishes, sharers, on_gpu=on_gpu) for node in nodes]
    found = sum(share.workers for share in shares)
    if wishes.workers is None:
        if not found:
            raise PlacementError(_too_small(shares, need, on_gpu=on_gpu))
        return Plan(need, tuple(shares))
    if not found and wishes.gpus_per_worker is None and not _fits_anywhere(nodes, need, on_gpu):
        raise PlacementError(_too_small(shares, need, on_gpu=on_gpu))
    return Plan(need, *_limited(shares, wishes.workers), is_elastic=False)


def _limited(shares: Sequence[Share], workers: int) -> tuple[tuple[Share, ...], int]:
    """Return the shares with `workers` in all, evenly filled, and how many have no room."""
    counts = [0] * len(shares)
    left = workers
    while left:
        open_ones = [i for i, share in enumerate(shares) if counts[i] < share.workers]
        if not open_ones:
            break
        # The emptiest first; the first of equals, so that the plan is the same every time.
        counts[min(open_ones, key=lambda i: (counts[i] / shares[i].workers, i))] += 1
        left -= 1
    kept = [
        Share(share.node, count, share.shape, share.reason or ("" if count else "not needed"))
        for share, count in zip(shares, counts, strict=True)
    ]
    return tuple(kept), left


def _sharers_wanted(nodes: Sequence[NodeFacts], need: ModelNeed, workers: int | None) -> int:
    """Return how many may share a GPU, so that few workers do not crowd on one of many."""
    if workers is None:
        return MOST_SHARERS
    sizes = [(len(node.gpus), _gpus_of_worker(node, need, 1, 1.0)) for node in nodes]
    slots = sum(int(n_gpus // size) for n_gpus, size in sizes if size)
    return min(MOST_SHARERS, math.ceil(workers / slots)) if slots else 1


def _share(
    node: NodeFacts, need: ModelNeed, wishes: Wishes, sharers: int, *, on_gpu: bool
) -> Share:
    cpus = wishes.cpus_per_worker
    if not on_gpu:
        return _cpu_share(node, need, cpus)
    gpus = wishes.gpus_per_worker or _gpus_of_worker(node, need, sharers, cpus)
    # A node that exists only in the autoscaler's plans has the shape of a whole GPU.
    shape = WorkerShape(cpus, gpus or 1.0, node.id)
    if not node.gpus:
        return Share(node, 0, shape, "has no GPU, others have")
    if not gpus:
        return Share(
            node, 0, shape, f"{len(node.gpus)} x {_gib(node.least_gpu)} of GPU memory: too small"
        )
    workers = room(node, shape)
    reason = "" if workers else f"{node.cpus:g} CPUs and {len(node.gpus)} GPUs: too few for one"
    return Share(node, workers, shape, reason)


def _cpu_share(node: NodeFacts, need: ModelNeed, cpus: float) -> Share:
    shape = WorkerShape(cpus, 0.0, node.id)
    by_cpu = room(node, shape)
    by_memory = int(node.memory * USABLE // need.on_cpu())
    if not by_cpu:
        return Share(node, 0, shape, f"{node.cpus:g} CPUs: too few for one")
    if not by_memory:
        return Share(node, 0, shape, f"{_gib(node.memory)} of free memory: too little for one")
    return Share(node, min(by_cpu, by_memory), shape)


def _gpus_of_worker(node: NodeFacts, need: ModelNeed, most_sharers: int, cpus: float) -> float:
    """Return the GPUs (or the part of one) that a worker on this node takes; 0: nothing fits."""
    usable = node.least_gpu * USABLE
    if need.on_gpu(comfortable=False) <= usable:
        sharers = min(most_sharers, int(usable // need.on_gpu(comfortable=True)))
        by_cpu = math.floor(node.cpus / cpus + 1e-9)
        # Ray fills one GPU after the other: where CPUs are few, that would leave some idle.
        while sharers > 1 and math.ceil(by_cpu / sharers) < len(node.gpus):
            sharers -= 1
        return 1.0 if sharers <= 1 else math.floor(1e4 / sharers) / 1e4
    for n_gpus in range(2, len(node.gpus) + 1 if need.divides else 2):
        if need.on_each_of(n_gpus) <= usable:
            return float(n_gpus)
    return 0.0


def _fits_anywhere(nodes: Sequence[NodeFacts], need: ModelNeed, on_gpu: bool) -> bool:
    if on_gpu:
        return any(_gpus_of_worker(node, need, 1, 1.0) for node in nodes)
    return any(need.on_cpu() <= node.memory * USABLE for node in nodes)


def _too_small(shares: Sequence[Share], need: ModelNeed, *, on_gpu: bool) -> str:
    what = f"a model of {need.parameters / 1e9:.3g}e9 parameters"
    found = "; ".join(f"{share.node.name}: {share.reason}" for share in shares[:4])
    if not on_gpu:
        return (
            f"no node can hold a worker: {what} needs {_gib(need.on_cpu())} of memory and "
            f"{shares[0].shape.cpus:g} CPUs. Found {found}. Lower runtime.cpus_per_worker, free "
            "memory or use larger nodes"
        )
    if not need.divides:
        return (
            f"no node can hold a worker: {what} needs {_gib(need.on_gpu(comfortable=False))} on "
            f"one GPU, of which {USABLE:.0%} may be used, and {shares[0].shape.cpus:g} CPUs; an "
            f"`engine:` uses one GPU. Found {found}. Use larger GPUs, leave `engine:` out "
            "(transformers divides a model over several GPUs), or have a server that divides it "
            "(evaluator endpoint)"
        )
    return (
        f"no node can hold a worker: {what} needs {_gib(need.on_gpu(comfortable=False))} on one "
        f"GPU, or {_gib(need.on_each_of(2))} on each of two, {_gib(need.on_each_of(8))} on each of "
        f"eight, of which {USABLE:.0%} may be used, and {shares[0].shape.cpus:g} CPUs. Found "
        f"{found}. Use nodes with more or larger GPUs, a smaller batch_tokens in the tasks, a "
        "server that divides the model (evaluator endpoint), or runtime.device: cpu; "
        "runtime.gpus_per_worker overrides this"
    )


def _gib(n_bytes: float) -> str:
    return f"{n_bytes / _GIB:.1f} GiB"
