"""What Ray costs: seconds to the first candidate, milliseconds per candidate, memory of workers.

    export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
    python benchmarks/ray_overhead.py [--candidates 2000] [--size 125m] [--workers 1 2 4] [--smoke]

Cost: the real loop, journal and M2N2 with scorers that do nothing (as in `loop_overhead.py`), in
process and on a private Ray cluster. `round_trip` has one worker and one candidate at a time, so
that all of Ray's latency shows; `busy` has two workers and twelve candidates in flight. Figures are
medians of the times between results, `cpu` the driver's CPU time (all threads) per candidate.
`overhead_ms_median` is the round trip on Ray less that in process.

Memory: real searches on Ray over one base and two experts of `--size` (bfloat16, merged and
"scored" by a function that reads one number), with growing numbers of workers. `pss_mb` is the
proportional memory of all worker processes, `sources_pss_mb` the part of it that is mapped model
files, `each_mb` the rest per worker (its resident model, torch, transformers); `rss_mb` counts
every shared page once per worker. Sources are counted once when `sources_pss_mb` stays at
`sources_mb`, the size of the files, or below.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

# Run as a script too, where only this folder is on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil

from benchmarks.loop_overhead import NoOpScorer, make_loop, no_op_scorer
from benchmarks.synthetic_models import build_models
from evomerge.runtime.in_process import InProcessExecutor
from evomerge.runtime.ray_pool import RayPool
from evomerge.search.ports import Executor

EXAMPLES = 200

# Its first call waits until every worker has made one: a quick one would end the search alone.
SCORER = """
import os, time
from pathlib import Path

met = False

def first_weight(subject, n, room, workers):
    global met
    Path(room, str(os.getpid())).touch()
    until = time.monotonic() + 120
    while not met and time.monotonic() < until:
        met = len(list(Path(room).iterdir())) >= workers
        time.sleep(0.05)
    weight = next(subject.model.parameters()).detach().flatten()[0]
    return [float(abs(weight))] * n
"""


def executor(workers: int) -> Executor:
    """Return an executor over scorers that do nothing; 0 workers: in process."""
    if not workers:
        return InProcessExecutor(NoOpScorer(EXAMPLES))
    return RayPool(
        partial(no_op_scorer, EXAMPLES),
        workers=workers,
        address=None,
        gpus_per_worker=0,
        cpus_per_worker=1.0,
        max_attempts=3,
        timeout_seconds=60.0,
        note=lambda _: None,
    )


def per_candidate(workers: int, look_ahead: int, candidates: int) -> dict[str, float]:
    """Run a search of no-op evaluations; returns times per candidate."""
    with tempfile.TemporaryDirectory() as folder:
        loop = make_loop(Path(folder) / "run", candidates, EXAMPLES, look_ahead)
        stamps: list[tuple[float, float]] = []
        loop.on_change = lambda _: stamps.append((time.perf_counter(), time.process_time()))
        started = time.perf_counter()
        pool = executor(workers)
        try:
            loop.run(pool)
        finally:
            pool.close()
            loop.log.close()  # type: ignore[attr-defined]
    wall, cpu = np.array(stamps).T
    settled = len(wall) // 5  # both workers are there, ids are past the founders
    return {
        "first_candidate_s": round(float(wall[0] - started), 2),
        "ms_median": round(1e3 * float(np.median(np.diff(wall[settled:]))), 3),
        "ms_mean": round(1e3 * float(np.mean(np.diff(wall[settled:]))), 3),
        "cpu_ms_mean": round(1e3 * float(np.mean(np.diff(cpu[settled:]))), 3),
    }


def memory(folder: Path, size: str, workers: int) -> dict[str, Any]:
    """Search on Ray with real workers; returns their memory when all have merged."""
    from evomerge.config.schema import parse_config
    from evomerge.config.session import Session, create_run
    from evomerge.storage.run_store import RunFolder

    models = build_models(folder, size, 2)
    (folder / "first_weight_scorer.py").write_text(SCORER)
    run = RunFolder(folder / f"run-{workers}")
    config = parse_config(_config(folder, models.folders, workers), "config")
    (folder / f"room-{workers}").mkdir()
    create_run(config, folder, run)
    seen: dict[str, Any] = {}

    def look(_: object) -> None:
        rows = [_memory_of(pid) for pid in _actors()]
        if len(rows) == workers and all(row["sources"] for row in rows):
            seen.update({key: sum(row[key] for row in rows) for key in rows[0]})

    with Session(run) as session:
        session.loop.on_change = look
        session.run()
    files = [path for each in models.folders for path in each.glob("*.safetensors")]
    return {
        "workers": workers,
        "sources_mb": round(sum(path.stat().st_size for path in files) / 2**20, 1),
        "pss_mb": round(seen["pss"] / 2**20, 1),
        "sources_pss_mb": round(seen["sources"] / 2**20, 1),
        "each_mb": round((seen["pss"] - seen["sources"]) / workers / 2**20, 1),
        "rss_mb": round(seen["rss"] / 2**20, 1),
    }


def _config(folder: Path, models: tuple[Path, ...], workers: int) -> dict[str, Any]:
    base, *experts = models
    return {
        "name": "memory",
        "base_model": str(base),
        "models": [{"name": path.name, "model": str(path)} for path in experts],
        "merge": {"name": "task_arithmetic"},
        "algorithm": {"name": "random"},
        "tasks": [
            {
                "name": "task",
                "evaluator": {
                    "name": "python",
                    "function": "first_weight_scorer:first_weight",
                    "path": str(folder),
                    "n": 4,
                    "arguments": {
                        "n": 4,
                        "room": str(folder / f"room-{workers}"),
                        "workers": workers,
                    },
                    "auto_class": "AutoModelForCausalLM",
                },
            }
        ],
        "budget": {"evaluations": 6 * workers + 6},
        "runtime": {"executor": "ray", "workers": workers, "cpus_per_worker": 0.5, "threads": 1},
    }


def _actors() -> list[int]:
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "ray::PlacedActor" in " ".join(child.cmdline()):
                found.append(child.pid)
        except psutil.Error:
            continue
    return found


def _memory_of(pid: int) -> dict[str, int]:
    """Return bytes of a process: proportional, resident, and proportional of model files."""
    total = {"pss": 0, "rss": 0, "sources": 0}
    is_source = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):  # the head of a mapping; ends with the file's name
            is_source = line.endswith(".safetensors")
        elif name in ("Pss:", "Rss:", "Anonymous:"):
            size = 1024 * int(rest.split()[0])
            if name != "Anonymous:":
                total[name[:-1].lower()] += size
            if is_source and name != "Rss:":
                # The resident model begins as a private map of the donor's file; what a merge
                # has written of it is no longer the file's.
                total["sources"] += size if name == "Pss:" else -size
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=2000)
    parser.add_argument("--size", default="125m")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="of the memory")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if args.smoke:
        args.candidates, args.size, args.workers = 200, "tiny", [2]
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    here = Path(__file__).resolve()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here.parents[1]), str(here.parent)])
    figures: dict[str, Any] = {
        "in_process": per_candidate(0, 1, args.candidates),
        "round_trip": per_candidate(1, 1, args.candidates),
        "busy": per_candidate(2, 12, args.candidates),
    }
    trip, local = figures["round_trip"], figures["in_process"]
    figures["overhead_ms_median"] = round(trip["ms_median"] - local["ms_median"], 3)
    for name in ("in_process", "round_trip", "busy"):
        print(f"{name:11s} {figures[name]}", flush=True)
    figures["memory"] = []
    with tempfile.TemporaryDirectory() as folder:
        for workers in args.workers:
            figures["memory"].append(memory(Path(folder), args.size, workers))
            print(f"memory      {figures['memory'][-1]}", flush=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
