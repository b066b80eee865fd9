"""Drivers in processes of their own: `python -m tests.cluster.drivers KIND FOLDER`.

Each prints one line per outcome: "outcome ID ATTEMPT ERROR".
"""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import psutil

from evomerge.errors import ExecutorError
from evomerge.runtime.ray_pool import RayPool
from tests.cluster import scorers


def say(*words: object) -> None:
    print(*words, flush=True)


def make_pool(folder: Path, seconds: float, address: str | None = None) -> RayPool:
    return RayPool(
        partial(scorers.fake, folder, seconds),
        workers=2,
        address=address,
        gpus_per_worker=None,
        cpus_per_worker=1,
        max_attempts=3,
        timeout_seconds=60,
        note=lambda text: say("note", text.splitlines()[0]),
    )


def report(pool: RayPool) -> int:
    outcomes = pool.wait(0.5)
    for outcome in outcomes:
        evaluation = outcome.evaluation
        say("outcome", evaluation.candidate.id, outcome.attempt, evaluation.error)
    return len(outcomes)


def signalled(folder: Path) -> None:
    """Finish what is running when a signal comes."""
    stops: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stops.append(number))
    pool = make_pool(folder, 2.0)
    for number in range(6):
        pool.submit(scorers.candidate(number))
    done = 0
    while not stops:
        done += report(pool)
    left = 6 - done - len(pool.withdraw())
    say("draining", left)
    while left:
        left -= report(pool)
    pool.close()
    say("signals", sorted(set(stops)))


def breakdown(folder: Path) -> None:
    """Lose the raylet of a private cluster."""
    pool = make_pool(folder, 0.1)
    try:
        for number in range(200):
            pool.submit(scorers.candidate(number))
        while not report(pool):
            pass
        raylets = [p for p in psutil.Process().children(recursive=True) if p.name() == "raylet"]
        raylets[0].kill()
        while True:
            report(pool)
    except ExecutorError as error:
        say("refused", error)
    finally:
        pool.close()


def two_at_once(folder: Path) -> None:
    """Stay until another driver on this machine is at work, too."""
    pool = make_pool(folder / str(os.getpid()), 0.0)
    (folder / str(os.getpid())).mkdir()
    number = 0
    until = time.monotonic() + 60
    while len(list(folder.glob("*/begun"))) < 2 and time.monotonic() < until:
        pool.submit(scorers.candidate(number))
        number += 1
        while not report(pool):
            pass
    pool.submit(scorers.candidate(number))
    while not report(pool):
        pass
    pool.close()


def node_death(folder: Path) -> None:
    """Join a cluster of three nodes, one of which dies; another one joins later."""
    token = folder / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o640)
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback only
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    from ray.cluster_utils import Cluster as Nodes

    small = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    doomed = nodes.add_node(num_cpus=1, **small)
    nodes.add_node(num_cpus=1, **small)
    pool = make_pool(folder, 0.2, nodes.address)
    try:
        total, done = 60, 0
        for number in range(total):
            pool.submit(scorers.candidate(number))
        while done < total:
            done += report(pool)
            if doomed is not None and done >= 10 and _processes(folder) == 2:
                nodes.remove_node(doomed, allow_graceful=False)
                doomed = None
                say("killed a node")
                nodes.add_node(num_cpus=1, **small)
        say("processes", _processes(folder))
    finally:
        pool.close()
        nodes.shutdown()


def _processes(folder: Path) -> int:
    return len({line.split()[1] for line in (folder / "begun").read_text().splitlines()})


if __name__ == "__main__":
    kinds = (signalled, breakdown, two_at_once, node_death)
    {kind.__name__: kind for kind in kinds}[sys.argv[1]](Path(sys.argv[2]))
