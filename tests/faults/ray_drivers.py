"""Drivers of a `RayPool` in trouble: `python -m tests.faults.ray_drivers KIND FOLDER`.

Each prints a line per outcome, "outcome ID ATTEMPT ERROR", and what else its test looks at.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil

from evomerge.errors import ExecutorError
from evomerge.runtime.ray_pool import RayPool
from tests.cluster.drivers import report, say
from tests.cluster.scorers import Fake, candidate, fake
from tests.faults.hungry_scorer import hungry


def make_pool(
    factory: Callable[[str], Fake], *, timeout: float, address: str | None = None
) -> RayPool:
    return RayPool(
        factory,
        workers=2,
        address=address,
        gpus_per_worker=0,
        cpus_per_worker=1,
        max_attempts=3,
        timeout_seconds=timeout,
        note=lambda text: say("note", text.splitlines()[0]),
    )


def begun(folder: Path) -> list[list[int]]:
    """Return (candidate, pid, seed) of every evaluation begun so far."""
    try:
        lines = (folder / "begun").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [[int(word) for word in line.split()] for line in lines]


def work(
    pool: RayPool, total: int, until: Callable[[], bool] = lambda: False, done: int = 0
) -> int:
    """Report outcomes until all are there, or until something holds; returns how many there are."""
    deadline = time.monotonic() + 120
    while done < total and not until():
        done += report(pool)
        if time.monotonic() > deadline:
            raise TimeoutError(f"{done} of {total} outcomes")
    return done


def stopped_worker(folder: Path) -> None:
    """SIGSTOP a worker in the middle of an evaluation."""
    pool = make_pool(partial(fake, folder, 0.05), timeout=5.0)
    pool.submit(candidate(0, 2.0))
    work(pool, 1, lambda: bool(begun(folder)))
    stopped = begun(folder)[0][1]
    os.kill(stopped, signal.SIGSTOP)
    for number in range(1, 20):
        pool.submit(candidate(number))
    number = work(pool, 20)
    while len({pid for _, pid, _ in begun(folder)}) < 3:  # until the replacement is at work
        pool.submit(candidate(number))
        number += 1
        work(pool, 1)
    say("replaced")
    say("left behind", _is_alive(stopped))
    pool.close()


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def dead_gcs(folder: Path) -> None:
    """Kill the control store of a private cluster."""
    pool = make_pool(partial(fake, folder, 0.1), timeout=60.0)
    try:
        for number in range(300):
            pool.submit(candidate(number))
        work(pool, 1)
        below = psutil.Process().children(recursive=True)
        next(process for process in below if process.name() == "gcs_server").kill()
        work(pool, 300, done=1)
    except ExecutorError as error:
        say("refused", error)
    finally:
        pool.close()


def hungry_worker(folder: Path) -> None:
    """Run out of memory for real, by a limit of the kernel, in one evaluation."""
    pool = make_pool(partial(hungry, folder), timeout=60.0)
    for number in range(6):
        pool.submit(candidate(number))
    work(pool, 6)
    pool.close()


def partition(folder: Path) -> None:
    """Freeze a whole node past the deadline of what it scores, then let it return."""
    os.environ |= {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback only
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
    }
    (folder / "token").write_text("0123456789abcdef" * 4)
    (folder / "token").chmod(0o600)
    from ray.cluster_utils import Cluster as Nodes

    small = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    raylets = [
        node.all_processes["raylet"][0].process.pid
        for node in (nodes.add_node(num_cpus=1, **small) for _ in range(2))
    ]
    pool = make_pool(partial(fake, folder, 0.3), timeout=5.0, address=nodes.address)
    total = 40
    try:
        for number in range(total):
            pool.submit(candidate(number))
        done = work(pool, total, lambda: len({pid for _, pid, _ in begun(folder)}) == 2)
        frozen = [psutil.Process(raylets[0]), *psutil.Process(raylets[0]).children(recursive=True)]
        for process in frozen:
            process.suspend()
        away = time.monotonic()
        done = work(pool, total, lambda: time.monotonic() > away + 8.0, done)
        for process in frozen:
            process.resume()
        say("returned with", done)
        done = work(pool, total, done=done)
        for _ in range(4):  # whatever the node still answers comes now
            done += report(pool)
        say("in all", done)
    finally:
        pool.close()
        nodes.shutdown()


if __name__ == "__main__":
    kinds = (stopped_worker, dead_gcs, hungry_worker, partition)
    {kind.__name__: kind for kind in kinds}[sys.argv[1]](Path(sys.argv[2]))
