from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from evomerge.algorithms.algorithm import search_algorithms
from tests.algorithms.golden_runs import FOLDER, RUNS, read, trajectory

BUILT_IN = {
    name
    for name in search_algorithms.names()
    if search_algorithms.get(name).__module__.startswith("evomerge.")
}
NEEDS_RIBS = pytest.mark.skipif(
    importlib.util.find_spec("ribs") is None, reason="pyribs, an extra, is not installed"
)


def test_every_algorithm_has_a_golden_run():
    assert {name for name, _ in RUNS.values()} >= BUILT_IN
    assert {path.stem for path in FOLDER.glob("*.json")} == set(RUNS)


@pytest.mark.parametrize(
    "stem", [pytest.param(s, marks=NEEDS_RIBS if s == "ribs" else ()) for s in RUNS]
)
def test_proposals_are_the_pinned_ones(stem):
    found, expected = trajectory(stem), read(stem)
    assert len(found) == len(expected)
    for now, then in zip(found, expected, strict=True):
        for key in ("parents", "origin", "breaks"):
            assert now[key] == then[key]
        # CMA-ES goes through LAPACK, whose last bits differ between CPUs.
        np.testing.assert_allclose(now["weights"], then["weights"], rtol=0, atol=1e-7)
