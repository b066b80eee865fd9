"""The real `RayPool` with many actors that sleep instead of merging and scoring."""

from __future__ import annotations

import math
import os
import resource
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from evomerge.core.candidate import Candidate, Evaluation
from evomerge.core.recipe import Recipe
from evomerge.runtime.ray_pool import RayPool
from evomerge.search.ports import Outcome

PER_ACTOR_MB = 120  # of memory; more actors than fit are refused


class Sleeper:
    """Sleeps a log-normal time of mean `seconds`, then answers with a few zeros."""

    def __init__(self, seconds: float, cv: float, name: str) -> None:
        self.seconds, self.cv, self.name = seconds, cv, name

    def evaluate(self, candidate: Candidate) -> Outcome:
        """Return made-up scores."""
        sigma = math.sqrt(math.log1p(self.cv**2))
        draw = np.random.default_rng(candidate.seed).normal(-(sigma**2) / 2, sigma)
        seconds = self.seconds * math.exp(draw)
        time.sleep(seconds)
        evaluation = Evaluation(candidate, {"task": np.zeros(200, np.float32)}, None, "none")
        return Outcome(evaluation, seconds, self.name)


def sleeper(seconds: float, cv: float, name: str) -> Sleeper:
    """Return a scorer; importable, so that actors can build it."""
    return Sleeper(seconds, cv, name)


def candidate(number: int) -> Candidate:
    """Return a candidate with a recipe of ordinary size."""
    recipe = Recipe("linear", ("a", "b"), {"weights": np.full((3, 2), 0.5)})
    return Candidate(number, recipe, (), number)


def on_ray(workers: int, cv: float, *, per_worker: int = 10) -> dict[str, Any]:
    """Keep `workers` actors busy; returns utilisation and the driver's cost per candidate.

    Evaluations take 50 ms times the number of actors in the mean, at least 1 s: so few results a
    second that this machine's cores, which all processes share, do not become the limit.
    """
    free = psutil.virtual_memory().available / 2**20
    if workers * PER_ACTOR_MB > 0.8 * free:
        workers = int(0.8 * free / PER_ACTOR_MB)
    _allow_open_files(workers)
    seconds = max(1.0, 0.05 * workers)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        pool = RayPool(
            partial(sleeper, seconds, cv),
            workers=workers,
            address=None,
            gpus_per_worker=0,
            cpus_per_worker=0.01,
            max_attempts=3,
            timeout_seconds=100 * seconds,
            note=lambda text: _append(Path(folder) / "log", text),
        )
        try:
            figures = _drive(pool, workers, per_worker, seconds, started)
        finally:
            pool.close()
    return figures


def _drive(
    pool: RayPool, workers: int, per_worker: int, seconds: float, started: float
) -> dict[str, Any]:
    for number in range(workers):
        pool.submit(candidate(number))
    seen: set[str] = set()
    number, busy = workers, 0.0
    while len(seen) < workers:  # until every actor has answered once
        for outcome in pool.wait(1.0):
            seen.add(outcome.worker)
            pool.submit(candidate(number))
            number += 1
        if time.monotonic() - started > 900:
            raise TimeoutError(f"{len(seen)} of {workers} actors came in 900 s")
    ready = time.monotonic() - started
    for _ in range(2 * workers):  # a queue: nobody waits for the driver's next proposal
        pool.submit(candidate(number))
        number += 1
    since, cpu, done = time.monotonic(), time.process_time(), 0
    while done < per_worker * workers:
        for outcome in pool.wait(1.0):
            done += 1
            busy += outcome.seconds
            pool.submit(candidate(number))
            number += 1
    wall, cpu = time.monotonic() - since, time.process_time() - cpu
    return {
        "actors": workers,
        "seconds_until_all_ready": round(ready, 1),
        "mean_sleep_s": round(seconds, 2),
        "utilisation": round(busy / (wall * workers), 4),
        "driver_cpu_ms_per_candidate": round(1e3 * cpu / done, 3),
        "candidates_per_s": round(done / wall, 1),
        "driver_rss_mb": round(psutil.Process().memory_info().rss / 2**20, 1),
        "machine_pss_mb": round(_pss_below() / 2**20, 1),
    }


def _pss_below() -> int:
    """Return proportional bytes of all processes below this one."""
    total = 0
    for child in psutil.Process().children(recursive=True):
        try:
            total += child.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def _allow_open_files(workers: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1024 + 64 * workers
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(f"{text}\n")
