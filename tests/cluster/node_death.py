"""A driver of its own: joins a cluster of three nodes, one of which is killed under way.

Run as `python -m tests.cluster.node_death FOLDER`; prints one line per outcome.
"""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path


def main(folder: Path) -> None:
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

    from evomerge.runtime.ray_pool import RayPool
    from tests.cluster import scorers

    small = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    doomed = nodes.add_node(num_cpus=1, **small)
    nodes.add_node(num_cpus=1, **small)
    pool = RayPool(
        partial(scorers.fake, folder, 0.2),
        workers=2,
        address=nodes.address,
        gpus_per_worker=None,
        cpus_per_worker=1,
        max_attempts=3,
        timeout_seconds=60,
        note=lambda text: print("note", text.splitlines()[0], flush=True),
    )
    try:
        total, seen, processes = 60, 0, set()
        for number in range(total):
            pool.submit(scorers.candidate(number))
        until = time.monotonic() + 150
        while seen < total and time.monotonic() < until:
            for outcome in pool.wait(0.5):
                seen += 1
                number, error = outcome.evaluation.candidate.id, outcome.evaluation.error
                print("outcome", number, outcome.attempt, outcome.worker, error, flush=True)
            begun = folder / "begun"
            lines = begun.read_text().splitlines() if begun.exists() else []
            processes = {line.split()[1] for line in lines}
            if doomed is not None and len(processes) == 2 and seen >= 10:
                nodes.remove_node(doomed, allow_graceful=False)
                doomed = None
                print("killed a node", flush=True)
                nodes.add_node(num_cpus=1, **small)
    finally:
        pool.close()
        nodes.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
