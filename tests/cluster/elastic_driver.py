"""A cluster whose nodes come and go: `python -m tests.cluster.elastic_driver PART FOLDER`.

Prints "outcome ID ATTEMPT ERROR" per outcome and what else the test looks at.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from evomerge.runtime.cluster_watch import Planner
from evomerge.runtime.placement_plan import ModelNeed, Wishes, plan_workers
from evomerge.runtime.ray_pool import RayPool
from tests.cluster import scorers
from tests.cluster.drivers import report, say

SMALL = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
B7 = ModelNeed(7_000_000_000, 14_000_000_000, 2 << 30, 1 << 30, 8 << 30)


def make_pool(factory: Any, address: str, planner: Planner | None, workers: int = 2) -> RayPool:
    return RayPool(
        factory,
        workers=workers,
        address=address,
        gpus_per_worker=0,
        cpus_per_worker=1,
        max_attempts=1,  # what goes with its node must not cost the only one
        timeout_seconds=60,
        note=lambda text: say("note", text.splitlines()[0]),
        planner=planner,
    )


class Work:
    """Keeps a pool busy, and counts."""

    def __init__(self, pool: RayPool, first: int = 0) -> None:
        self.pool, self.next, self.open = pool, first, 0

    def submit(self, value: float = 0.0) -> None:
        self.pool.submit(scorers.candidate(self.next, value))
        self.next += 1
        self.open += 1

    def until(self, holds: Callable[[], bool], *, feed: bool = True) -> None:
        deadline = time.monotonic() + 90
        while not holds():
            while feed and self.open < 4:
                self.submit()
            self.open -= report(self.pool)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.open} are open")


def begun(folder: Path) -> list[int]:
    """Return the process of every evaluation begun so far."""
    path = folder / "begun"
    return [int(line.split()[1]) for line in path.read_text().splitlines()] if path.exists() else []


def drain(address: str, node_id: str, seconds: float) -> None:
    """Announce a node's pre-emption, as an autoscaler or a cloud's notice does."""
    import ray
    from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

    client = ray._raylet.GcsClient(address=address)
    deadline = int((time.time() + seconds) * 1000)
    accepted, why = client.drain_node(node_id, DRAIN_NODE_REASON_PREEMPTION, "spot", deadline)
    assert accepted, why


def requested() -> list[dict[str, float]]:
    """Return what Ray's autoscaler reads."""
    from ray.autoscaler._private.constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
    from ray.experimental.internal_kv import _internal_kv_get

    found = _internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL)
    return json.loads(found or b"[]")


def come_and_go(nodes: Any, folder: Path) -> None:
    """Announce the end of one node of two, let a third join, kill the second after its notice."""
    planner = partial(plan_workers, need=ModelNeed(0, 0), wishes=Wishes(gpus_per_worker=0))
    first, second = (nodes.add_node(num_cpus=1, **SMALL) for _ in range(2))
    pool = make_pool(partial(scorers.fake, folder, 0.3), nodes.address, planner)
    work = Work(pool)
    work.until(lambda: len(set(begun(folder))) == 2)
    drain(nodes.address, first.node_id, 60)
    work.until(lambda: len(set(begun(folder)[-6:])) == 1)
    (staying,), mark = set(begun(folder)[-6:]), len(begun(folder))
    nodes.add_node(num_cpus=1, **SMALL)
    work.until(lambda: len(set(begun(folder))) == 3)
    (new,) = set(begun(folder)[mark:]) - {staying}
    work.until(lambda: not work.open, feed=False)
    for _ in range(2):
        work.submit(5.0)
    work.until(lambda: {staying, new} == set(begun(folder)[-2:]), feed=False)
    drain(nodes.address, second.node_id, 60)
    work.until(lambda: sum(seat.is_leaving for seat in pool._seats) == 1, feed=False)
    nodes.remove_node(second, allow_graceful=False)
    work.until(lambda: not work.open, feed=False)
    say("workers at the end", len(set(begun(folder)[mark:])))
    pool.close()


def kinds_of_nodes(nodes: Any, folder: Path) -> None:
    """Plan for GPUs of two sizes, which only labels know of; then ask for more than there is."""
    for gib, cpus in (("24", 1), ("80", 3)):
        nodes.add_node(num_cpus=cpus, num_gpus=1, labels={"evomerge-gpu-gib": gib}, **SMALL)
    pool = make_pool(
        scorers.Environment, nodes.address, partial(plan_workers, need=B7, wishes=Wishes())
    )
    shapes = Counter(seat.shape.gpus for seat in pool._seats)
    say("shapes", json.dumps(sorted(shapes.items())))
    work = Work(pool)
    for _ in range(12):
        work.submit()
    work.until(lambda: not work.open, feed=False)
    pool.close()

    pool = make_pool(partial(scorers.fake, folder, 0.0), nodes.address, None, workers=5)
    say("requested", json.dumps(requested()))
    work = Work(pool, 100)
    work.submit()
    work.until(lambda: not work.open, feed=False)
    pool._watch.stop()
    say("withdrawn", json.dumps(requested()))
    pool.close()


def main(part: str, folder: Path) -> None:
    token = folder / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback only
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, **SMALL})
    {each.__name__: each for each in (come_and_go, kinds_of_nodes)}[part](nodes, folder)
    nodes.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
