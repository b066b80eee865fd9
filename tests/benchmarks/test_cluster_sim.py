"""benchmarks/cluster_sim.py and the simulated pool behind it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cluster_sim import Case, simulate
from benchmarks.simulated_pool import SimulatedPool, Weather
from tests.cluster.scorers import candidate

ROOT = Path(__file__).parents[2]
CALM = Weather(p_death=0.0, p_hang=0.0, node_leaves=1e-9)


def drain(pool: SimulatedPool, count: int) -> list[int]:
    ids: list[int] = []
    while len(ids) < count:
        ids += [outcome.evaluation.candidate.id for outcome in pool.wait(0.5)]
    assert pool.wait(0.5) == []
    return ids


def test_every_candidate_comes_back_once_in_bad_weather() -> None:
    storm = Weather(p_death=0.2, p_hang=0.1, node_leaves=100.0)
    pool = SimulatedPool(20, storm, candidates=400, examples=4)
    for number in range(400):
        pool.submit(candidate(number))
    assert sorted(drain(pool, 400)) == list(range(400))
    assert pool.lost > 20
    tally = pool.tally()
    assert 0 < tally.useful < tally.busy <= tally.here


def test_without_failures_all_work_is_useful_and_time_is_that_of_the_evaluations() -> None:
    pool = SimulatedPool(1, Weather(cv=1e-6, p_death=0, p_hang=0), candidates=10, examples=4)
    for number in range(10):
        pool.submit(candidate(number))
    assert drain(pool, 10) == list(range(10))
    tally = pool.tally()
    assert tally.useful == pytest.approx(tally.busy) == pytest.approx(600, rel=0.01)
    assert pool.steady is not None
    assert pool.steady[0] == pytest.approx(540, rel=0.01)


def test_a_barrier_idles_and_asynchrony_does_not() -> None:
    rows = {m: simulate(Case(16, m, 320, 20, CALM)) for m in ("completed", "barrier", "ordered-6")}
    assert rows["completed"]["utilisation"] > 0.97
    assert rows["ordered-6"]["utilisation"] > 0.9
    assert rows["barrier"]["utilisation"] < 0.7
    assert {row["failed"] for row in rows.values()} == {0}


def test_the_command_prints_every_figure() -> None:
    command = [
        sys.executable,
        "benchmarks/cluster_sim.py",
        "--smoke",
        "--workers",
        "8",
        "--cv",
        "1",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["workers"] == 8
    assert figures["barrier_utilisation"] < figures["utilisation"] <= 1.0
    assert figures["manager_ms_per_candidate"] > 0
    assert figures["rss_mb"] > 10
    assert len(figures["rows"]) == 7
