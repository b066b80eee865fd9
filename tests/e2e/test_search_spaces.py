"""Curves, switches, chunks and a choice of methods through the command line, on tiny models."""

import json

import numpy as np
import pytest

from .tiny_run import evomerge, journal

pytestmark = pytest.mark.slow

MERGES = {
    "curve": {"name": "task_arithmetic", "groups": "layer", "weights": {"curve": 2}},
    "modules": {"name": "ties", "groups": "kind", "modules": "search"},
    "chunks": {"name": "linear", "groups": "chunk:7"},
    "span": {"name": "linear", "normalize": False},
    "choice": {
        "groups": "layer",
        "any_of": [
            {"name": "ties", "density": "search"},
            {"name": "task_arithmetic", "groups": "chunk:5"},
            {"name": "slerp", "t": "search"},
        ],
    },
}


@pytest.mark.parametrize(
    ("merge", "algorithm"),
    [
        ("curve", {"name": "nsga2"}),
        ("modules", {"name": "cma_es"}),
        ("chunks", {"name": "auto"}),
        ("choice", {"name": "tpe"}),
        ("span", {"name": "m2n2", "angle_scope": "tensor"}),
    ],
)
def test_search_resume_export(tiny_models, tmp_path, merge, algorithm):
    changes = {"merge": MERGES[merge], "algorithm": algorithm}
    tiny_models.write(tmp_path / "c.yaml", **changes)
    done = evomerge("search", "c.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = evomerge("resume", "tiny", "--evaluations", "26", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = journal(tmp_path / "populations/tiny")
    own = [e for e in events if e["kind"] == "asked" and not e["origin"].startswith("founder")]
    assert len([e for e in events if e["kind"] == "told"]) == 26
    if merge == "choice":
        assert {e["recipe"]["operator"] for e in own} == {"ties", "task_arithmetic", "slerp"}
    else:
        check_weights(merge, own)
    done = evomerge("export", "tiny", "--out", tmp_path / "out", "--verify", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["rescored_examples"] == 24


def check_weights(merge, own):
    if merge == "span":
        assert max(len(e["recipe"]["breaks"]) for e in own) > 10, "a segment per tensor"
        return
    weights = np.array([e["recipe"]["params"]["weights"] for e in own])
    if merge == "curve":
        assert weights.shape[1:] == (4, 2), "embeddings, two layers, head"
        np.testing.assert_array_equal(weights[:, 0], weights[:, 1])
        np.testing.assert_array_equal(weights[:, 2], weights[:, 3])
    elif merge == "chunks":
        assert weights.shape[1:] == (7, 3)
        assert len({tuple(e["recipe"]["breaks"]) for e in own}) == 1
        assert len(own[0]["recipe"]["breaks"]) == 8
    else:
        assert (weights == 0.0).all(axis=2).any(), "some group of some candidate is off"
        assert all("modules" not in e["recipe"]["params"] for e in own)


def test_a_choice_of_methods_through_every_verb(tiny_models, tmp_path):
    def run(*arguments):
        done = evomerge(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    changes = {"merge": MERGES["choice"], "budget": {"evaluations": 24}}
    tiny_models.write(tmp_path / "a.yaml", **changes, name="a", algorithm={"name": "cma_es"})
    said = run("check", "a.yaml")
    assert "29 dimensions in 4 groups for ties, 5 groups for task_arithmetic" in said
    run("search", "a.yaml")
    front = json.loads(run("front", "a", "--json"))
    assert front
    tiny_models.write(tmp_path / "b.yaml", **changes, name="b", algorithm={"name": "nsga2"})
    run("search", "b.yaml", "--warm-start", "populations/a")
    taken = [e for e in journal(tmp_path / "populations/b") if e["kind"] == "asked"][:24]
    assert all(event["origin"].startswith("warm start") for event in taken)
    small = {"any_of": ["task_arithmetic", {"name": "linear", "normalize": False}]}
    algorithm = {"name": "amortized_pareto", "generations": 10}
    tiny_models.write(tmp_path / "c.yaml", name="c", merge=small, algorithm=algorithm)
    run("search", "c.yaml")
    answer = json.loads(run("ask", "c", "--weights", "up=1,down=1", "--json"))
    assert set(answer["predicted"]) == {"up", "down"}
    tiny_models.write(tmp_path / "d.yaml", **changes, algorithm={"name": "m2n2"})
    refused = evomerge("check", "d.yaml", cwd=tmp_path)
    assert refused.returncode != 0
    assert "ConfigError: merge.any_of: 'm2n2' breeds linear combinations" in refused.stderr
