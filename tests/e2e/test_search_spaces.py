"""Curves and switches through the command line, on tiny real models."""

import json

import numpy as np
import pytest

from .tiny_run import evomerge, journal

pytestmark = pytest.mark.slow

MERGES = {
    "curve": {"name": "task_arithmetic", "groups": "layer", "weights": {"curve": 2}},
    "modules": {"name": "ties", "groups": "kind", "modules": "search"},
}


@pytest.mark.parametrize(("merge", "algorithm"), [("curve", "nsga2"), ("modules", "cma_es")])
def test_search_resume_export(tiny_models, tmp_path, merge, algorithm):
    changes = {"merge": MERGES[merge], "algorithm": {"name": algorithm}}
    tiny_models.write(tmp_path / "c.yaml", **changes)
    done = evomerge("search", "c.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = evomerge("resume", "tiny", "--evaluations", "26", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = journal(tmp_path / "populations/tiny")
    own = [e for e in events if e["kind"] == "asked" and not e["origin"].startswith("founder")]
    assert len([e for e in events if e["kind"] == "told"]) == 26
    weights = np.array([e["recipe"]["params"]["weights"] for e in own])
    if merge == "curve":
        assert weights.shape[1:] == (4, 2), "embeddings, two layers, head"
        np.testing.assert_array_equal(weights[:, 0], weights[:, 1])
        np.testing.assert_array_equal(weights[:, 2], weights[:, 3])
    else:
        assert (weights == 0.0).all(axis=2).any(), "some group of some candidate is off"
        assert all("modules" not in e["recipe"]["params"] for e in own)
    done = evomerge("export", "tiny", "--out", tmp_path / "out", "--verify", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["rescored_examples"] == 24
