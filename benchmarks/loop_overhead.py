"""Cost of ask + journal + tell per candidate, with an evaluator that does nothing.

    python benchmarks/loop_overhead.py [--candidates 50000] [--examples 200] [--no-ray]

In process: the real loop, journal, scores file and M2N2 (population 20), on a span of four
random sources; scores are random 0/1 vectors. Ray: the same with two actors.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from evomerge.algorithms.m2n2 import M2N2
from evomerge.core.candidate import Candidate, Evaluation, Proposal
from evomerge.core.linear_span import LinearSpan
from evomerge.core.objective import Objective, Objectives
from evomerge.core.search_space import SearchSpace
from evomerge.search.loop import LoopPlan, SearchLoop
from evomerge.search.ports import Outcome
from evomerge.storage.run_store import RunFolder, RunStore

N_ELEMENTS = 20_000


class NoOpScorer:
    """Scores drawn from the candidate's own seed, so that every executor gives the same."""

    def __init__(self, n_examples: int, name: str = "no-op") -> None:
        self.n_examples = n_examples
        self.name = name

    def evaluate(self, candidate: Candidate) -> Outcome:
        """Return random 0/1 scores at once."""
        rng = np.random.default_rng(candidate.seed)
        scores = (rng.random(self.n_examples) < 0.5).astype(np.float32)
        return Outcome(Evaluation(candidate, {"task": scores}, None, "none"), 0.0, self.name)


def no_op_scorer(n_examples: int, name: str) -> NoOpScorer:
    """Return a scorer; importable, so that Ray actors can build it."""
    return NoOpScorer(n_examples, name)


def span_of_random_sources(k: int = 4) -> LinearSpan:
    """Return the span of k random sources of `N_ELEMENTS` elements."""
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(N_ELEMENTS, k))
    grams = basis[:, :, None] * basis[:, None, :]
    sources = tuple(f"source{i}" for i in range(k))
    return LinearSpan.from_block_grams(sources, N_ELEMENTS, 1, grams)


def make_loop(path: Path, candidates: int, n_examples: int, look_ahead: int) -> SearchLoop:
    """Return a fresh loop with a real run store under `path`."""
    span = span_of_random_sources()
    founders = tuple(
        Proposal(span.recipe(span.single(i)), (), "founder") for i in range(len(span.sources))
    )
    space = SearchSpace("linear", span.sources, "global", 1, (), {}, {}, span, founders)
    folder = RunFolder(path)
    folder.create({"config.yaml": b"", "sources.json": b"[]"})
    store = RunStore(folder, header={"kind": "header", "format": 1}, tasks={"task": n_examples})
    return SearchLoop(
        algorithm=M2N2(population_size=20),
        space=space,
        objectives=Objectives((Objective("task", {"task": 1.0}),)),
        log=store,
        plan=LoopPlan(
            seed=0, evaluations=candidates, look_ahead=look_ahead, tasks={"task": n_examples}
        ),
    )


def in_process(candidates: int, n_examples: int) -> dict[str, object]:
    """Run the loop without workers; return milliseconds per candidate."""
    from evomerge.runtime.in_process import InProcessExecutor

    with tempfile.TemporaryDirectory() as folder:
        loop = make_loop(Path(folder) / "run", candidates, n_examples, look_ahead=3)
        stamps: list[float] = [time.perf_counter()]
        loop.on_change = lambda _: stamps.append(time.perf_counter())
        cpu = time.process_time()
        loop.run(InProcessExecutor(NoOpScorer(n_examples)))
        cpu_ms = 1e3 * (time.process_time() - cpu) / candidates
        journal_mb = (Path(folder) / "run" / "journal.jsonl").stat().st_size / 1e6
        loop.log.close()  # type: ignore[attr-defined]
    each = 1e3 * np.diff(stamps)
    thousands = [round(float(np.median(part)), 4) for part in _chunks(each, 1000)]
    return {
        "in_process_ms_median": round(float(np.median(each)), 4),
        "in_process_ms_mean": round(float(np.mean(each)), 4),
        "in_process_cpu_ms_mean": round(cpu_ms, 4),
        "in_process_ms_by_thousand": thousands,
        "in_process_last_over_first": round(thousands[-1] / thousands[0], 3),
        "journal_mb": round(journal_mb, 1),
    }


def on_ray(candidates: int, n_examples: int) -> dict[str, object]:
    """Run the loop with two Ray actors; return candidates per second after the first result."""
    from functools import partial

    from evomerge.runtime.ray_pool import RayPool

    here = str(Path(__file__).resolve().parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    from loop_overhead import no_op_scorer as importable

    with tempfile.TemporaryDirectory() as folder:
        loop = make_loop(Path(folder) / "run", candidates, n_examples, look_ahead=12)
        pool = RayPool(
            partial(importable, n_examples),
            workers=2,
            address=None,
            gpus_per_worker=0,
            cpus_per_worker=1.0,
            max_attempts=3,
            timeout_seconds=60.0,
            note=lambda _: None,
        )
        stamps: list[float] = []
        loop.on_change = lambda _: stamps.append(time.perf_counter())
        try:
            loop.run(pool)
        finally:
            pool.close()
        loop.log.close()  # type: ignore[attr-defined]
    return {"ray_candidates_per_s": round((len(stamps) - 1) / (stamps[-1] - stamps[0]), 1)}


def _chunks(values: np.ndarray, size: int) -> list[np.ndarray]:
    return [values[i : i + size] for i in range(0, len(values), size) if i + size <= len(values)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=50_000)
    parser.add_argument("--ray-candidates", type=int, default=3_000)
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--no-ray", action="store_true")
    args = parser.parse_args()
    print(f"in process, {args.candidates} candidates", file=sys.stderr)
    figures = in_process(args.candidates, args.examples)
    if not args.no_ray:
        print(f"Ray, two actors, {args.ray_candidates} candidates", file=sys.stderr)
        figures |= on_ray(args.ray_candidates, args.examples)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
