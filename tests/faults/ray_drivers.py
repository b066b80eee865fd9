"""Drivers of a `RayPool` in trouble: `python -m tests.faults.ray_drivers KIND FOLDER`.

Each prints a line per outcome, "outcome ID ATTEMPT ERROR", and what else its test looks at.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from evomerge.errors import ExecutorError
from evomerge.runtime.ray_pool import RayPool
from tests.cluster.drivers import report, say
from tests.cluster.scorers import Fake, candidate, fake
from tests.faults.hungry_scorer import greedy, hungry

SMALL = {"include_dashboard": False, "object_store_memory": 100 * 2**20}


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


def dead_at_birth(folder: Path) -> None:
    """Kill the raylet of a private cluster as soon as there is one."""

    def kill() -> None:
        while True:
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if process.name() == "raylet":
                        process.kill()
                        return
            time.sleep(0.001)

    threading.Thread(target=kill, daemon=True).start()
    try:
        make_pool(partial(fake, folder, 0.1), timeout=60.0)
    except ExecutorError as error:
        say("refused", error)


def dead_head(folder: Path) -> None:
    """Kill the control store of a cluster that was joined; its nodes and workers live on."""
    # Ray ends this process without a word 24 s later, instead of 60.
    os.environ |= {"RAY_gcs_rpc_server_reconnect_timeout_s": "24"}
    nodes = _cluster(folder)
    for _ in range(2):
        nodes.add_node(num_cpus=1, **SMALL)
    pool = make_pool(partial(fake, folder, 0.2), timeout=60.0, address=nodes.address)
    try:
        for number in range(3000):
            pool.submit(candidate(number))
        work(pool, 5)
        nodes.head_node.all_processes["gcs_server"][0].process.kill()
        killed = time.monotonic()
        work(pool, 3000, lambda: time.monotonic() > killed + 6)
        say("headless for 6 s")
        work(pool, 3000)
    except ExecutorError as error:
        say("refused", error)
    finally:
        pool.close()
    say("closed")
    nodes.shutdown()


def hungry_worker(folder: Path) -> None:
    """Run out of memory for real, by a limit of the kernel, in one evaluation."""
    pool = make_pool(partial(hungry, folder), timeout=60.0)
    for number in range(6):
        pool.submit(candidate(number))
    work(pool, 6)
    pool.close()


def killed_for_memory(folder: Path) -> None:
    """Have the kernel kill a worker in a control group of 256 MB."""
    group = make_group(256 << 20)
    (folder / "group").write_text(str(group))
    pool = make_pool(partial(greedy, folder), timeout=60.0)
    try:
        for number in range(6):
            pool.submit(candidate(number))
        work(pool, 6)
        for name in ("memory.oom_control", "memory.events"):
            if (group / name).exists():
                say(
                    *next(
                        x for x in (group / name).read_text().splitlines() if "oom_kill " in x
                    ).split()
                )
    finally:
        pool.close()
        group.rmdir()


def make_group(n_bytes: int) -> Path:
    """Return a new control group with so much memory.

    Raises:
        OSError: This machine has none, or it is not this process's to make.
    """
    old = Path("/sys/fs/cgroup/memory")
    group = (old if old.is_dir() else Path("/sys/fs/cgroup")) / f"evomerge-{os.getpid()}"
    group.mkdir()
    try:
        name = "memory.limit_in_bytes" if old.is_dir() else "memory.max"
        (group / name).write_text(str(n_bytes))
    except OSError:
        group.rmdir()
        raise
    return group


def _cluster(folder: Path) -> Any:
    """Return a head without work on loopback; nodes can be added."""
    os.environ |= {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback only
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
    }
    (folder / "token").write_text("0123456789abcdef" * 4)
    (folder / "token").chmod(0o600)
    from ray.cluster_utils import Cluster as Nodes

    return Nodes(initialize_head=True, head_node_args={"num_cpus": 0, **SMALL})


def partition(folder: Path) -> None:
    """Freeze a whole node past the deadline of what it scores, then let it return."""
    nodes = _cluster(folder)
    raylets = [
        node.all_processes["raylet"][0].process.pid
        for node in (nodes.add_node(num_cpus=1, **SMALL) for _ in range(2))
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
    kinds = (
        stopped_worker,
        dead_gcs,
        dead_at_birth,
        dead_head,
        hungry_worker,
        killed_for_memory,
        partition,
    )
    {kind.__name__: kind for kind in kinds}[sys.argv[1]](Path(sys.argv[2]))
