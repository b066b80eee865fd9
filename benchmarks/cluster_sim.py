"""Utilisation and the manager's own cost at 8 … 1,024 workers: real loop, simulated evaluators.

    export OMP_NUM_THREADS=1
    python benchmarks/cluster_sim.py [--workers 8 64 256 1024] [--cv 0.5] [--per-worker 40]
                                     [--ray 32] [--smoke]

The search loop, M2N2, the run folder with its journal and the scheduler's bookkeeping are the real
ones; evaluations are made up (`simulated_pool.py`): log-normal times of mean 60 s, one in 500
kills its worker, one in 2,000 hangs until its deadline, nodes of 8 workers leave and come back.
The clock is virtual, and the manager's CPU seconds pass on it too.

Utilisation is worker seconds at work over worker seconds there, until the last candidate has been
handed out; `useful` leaves out work that was lost. Beside it: `ordered`, results told in the order
they were asked, with a look-ahead of 3, 6 and 12 candidates per worker, and `barrier`, which asks
for a generation of one candidate per worker and waits for all of it. The rows `…-calm` are of
machines that never fail: in order, one evaluation that hangs holds up all that wait behind it.
`manager_ms_per_candidate` is CPU time of the whole process less that of making up times and scores;
`growth` is the last tenth of a run over its second tenth, `growth_with_workers` the largest number
of workers over the smallest. Every row is measured in a process of its own.

`--ray N` then runs the real RayPool with N actors that sleep (a driver, its cluster and the actors
all on this machine). The last line of stdout is one JSON object; its plain keys are those of the
largest number of workers.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Run as a script too, where only this folder is on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil

from benchmarks.loop_overhead import span_of_random_sources
from benchmarks.simulated_pool import SimulatedPool, Weather
from evomerge.algorithms.m2n2 import M2N2
from evomerge.core.candidate import Evaluation, Proposal
from evomerge.core.objective import Objective, Objectives
from evomerge.core.search_space import SearchSpace
from evomerge.search.loop import LoopPlan, SearchLoop, TellOrder
from evomerge.storage.run_store import RunFolder, RunStore

LOOK_AHEADS = (3, 6, 12)


class Generations:
    """M2N2 behind a barrier: asks for `size` candidates, then waits for all their results."""

    def __init__(self, size: int) -> None:
        self._inner = M2N2(population_size=20)
        self._size = size
        self._asked = self._told = 0

    def start(self, space: SearchSpace, objectives: Objectives, rng: np.random.Generator) -> None:
        """Begin a run."""
        self._inner.start(space, objectives, rng)

    def ask(self) -> Proposal | None:
        """Return a proposal, None while the generation is incomplete."""
        if self._asked - self._told >= self._size or self._told % self._size:
            return None
        self._asked += 1
        return self._inner.ask()

    def tell(self, evaluation: Evaluation) -> None:
        """Take a result."""
        self._told += 1
        self._inner.tell(evaluation)


@dataclass(frozen=True)
class Case:
    """One row: `mode` is "completed", "barrier…" or "ordered-F", F candidates ahead per worker."""

    workers: int
    mode: str
    candidates: int
    examples: int
    weather: Weather

    @property
    def is_barrier(self) -> bool:
        """Whether it goes by generations."""
        return self.mode.startswith("barrier")

    @property
    def look_ahead(self) -> int:
        """Candidates in flight."""
        if self.is_barrier:
            return self.workers
        return self.workers * (3 if self.mode == "completed" else int(self.mode.split("-")[1]))


def make_loop(folder: Path, case: Case) -> SearchLoop:
    """Return a fresh loop with a real run store in `folder`."""
    span = span_of_random_sources()
    space = SearchSpace("linear", span.sources, "global", 1, (), {}, {}, span, ())
    run = RunFolder(folder)
    run.create({"config.yaml": b"", "sources.json": b"[]"})
    order: TellOrder = "asked" if case.mode.startswith("ordered") else "completed"
    return SearchLoop(
        algorithm=Generations(case.workers) if case.is_barrier else M2N2(population_size=20),
        space=space,
        objectives=Objectives((Objective("task", {"task": 1.0}),)),
        log=RunStore(run, header={"kind": "header", "format": 1}, tasks={"task": case.examples}),
        plan=LoopPlan(0, case.candidates, case.look_ahead, order, tasks={"task": case.examples}),
    )


def simulate(case: Case) -> dict[str, Any]:
    """Run one case to its end; returns its figures."""
    with tempfile.TemporaryDirectory() as folder:
        loop = make_loop(Path(folder) / "run", case)
        pool = SimulatedPool(
            case.workers, case.weather, candidates=case.candidates, examples=case.examples
        )
        tenth = max(1, case.candidates // 10)
        cpu: list[float] = []
        rss: list[float] = []

        def sample(at: SearchLoop) -> None:
            if at.n_told % tenth == 0:
                cpu.append(time.process_time() - pool.own_cpu)
                rss.append(psutil.Process().memory_info().rss / 2**20)

        loop.on_change = sample
        before = time.process_time()
        loop.run(pool)
        seconds = time.process_time() - before - pool.own_cpu
        failed = loop.population.failures
        loop.log.close()  # type: ignore[attr-defined]
    # A barrier waits at the end of its last generation as after all others.
    end, tally = pool.steady if pool.steady and not case.is_barrier else (0.0, pool.tally())
    whole = pool.tally()
    steps = np.diff(cpu)
    return {
        "workers": case.workers,
        "mode": case.mode,
        "candidates": case.candidates,
        "utilisation": round(tally.busy / tally.here, 4),
        "useful": round(tally.useful / tally.here, 4),
        "with_tail": round(whole.busy / whole.here, 4),
        "manager_ms_per_candidate": round(1e3 * seconds / case.candidates, 3),
        "growth": round(float(steps[-1] / steps[0]), 2),
        "rss_mb": round(rss[-1], 1),
        "rss_growth_mb": round(rss[-1] - rss[len(rss) // 2], 1),
        "lost": pool.lost,
        "failed": failed,
        "virtual_hours": round((end or pool.now) / 3600, 2),
    }


def in_new_process(case: Case) -> dict[str, Any]:
    """Run a case where no earlier one has left memory behind."""
    with multiprocessing.get_context("spawn").Pool(1) as processes:
        return processes.apply(simulate, (case,))


def show(row: dict[str, Any]) -> None:
    print(
        f"{row['workers']:5d} {row['mode']:14s} {row['utilisation']:7.1%} {row['useful']:7.1%} "
        f"{row['with_tail']:7.1%} {row['manager_ms_per_candidate']:7.3f} {row['growth']:6.2f} "
        f"{row['rss_mb']:7.1f} {row['rss_growth_mb']:7.1f} {row['lost']:6d} {row['failed']:4d} "
        f"{row['candidates']:7d}",
        flush=True,
    )


def summary(rows: list[dict[str, Any]], workers: list[int]) -> dict[str, Any]:
    """Return the JSON object: the figures of the largest number of workers, and all rows."""
    by = {(row["workers"], row["mode"]): row for row in rows}
    most, least = max(workers), min(workers)
    free, cost = by[most, "completed"], "manager_ms_per_candidate"
    return {
        "workers": most,
        "utilisation": free["utilisation"],
        "useful": free["useful"],
        "ordered_utilisation": {
            str(factor): by[most, f"ordered-{factor}"]["utilisation"] for factor in LOOK_AHEADS
        },
        "barrier_utilisation": by[most, "barrier"]["utilisation"],
        "calm_ordered_utilisation": by[most, "ordered-3-calm"]["utilisation"],
        "calm_barrier_utilisation": by[most, "barrier-calm"]["utilisation"],
        cost: free[cost],
        "ordered_manager_ms_per_candidate": by[most, "ordered-3"][cost],
        "growth": free["growth"],
        "growth_with_workers": round(free[cost] / by[least, "completed"][cost], 2),
        "rss_mb": free["rss_mb"],
        "rss_growth_mb": free["rss_growth_mb"],
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 64, 256, 1024])
    parser.add_argument("--cv", type=float, default=0.5, help="of evaluation times")
    parser.add_argument("--per-worker", type=int, default=40, help="candidates per worker")
    parser.add_argument("--least", type=int, default=10_000, help="candidates at the least")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--ray", type=int, default=0, metavar="N", help="sleeping Ray actors")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if args.smoke:
        args.workers, args.per_worker, args.least = [min(args.workers[0], 16)], 20, 200
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(
        "workers mode         at work  useful  + tail  ms/cand growth   rss MB  growth   lost "
        "failed candidates"
    )
    rows = []
    ordered = [f"ordered-{factor}" for factor in LOOK_AHEADS]
    modes = ["completed", *ordered, "barrier", "ordered-3-calm", "barrier-calm"]
    for workers in args.workers:
        candidates = max(args.per_worker * workers, args.least)
        for mode in modes:
            weather = Weather(cv=args.cv)
            if mode.endswith("calm"):
                weather = replace(weather, p_death=0.0, p_hang=0.0, node_leaves=1e-9)
            case = Case(workers, mode, candidates, args.examples, weather)
            rows.append(in_new_process(case))
            show(rows[-1])
    figures = summary(rows, args.workers) | {"cv": args.cv}
    if args.ray:
        from benchmarks.sleeping_actors import on_ray

        figures["ray"] = on_ray(args.ray, args.cv)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
