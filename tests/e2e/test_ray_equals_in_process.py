"""One config, two executors, one journal."""

import json

import pytest

from .tiny_run import evomerge


@pytest.mark.cluster
def test_ordered_runs_in_process_and_on_ray_are_identical(tiny_models, tmp_path):
    tiny_models.write(
        tmp_path / "c.yaml",
        merge={"name": "linear", "normalize": False},
        algorithm={"name": "m2n2", "population_size": 6},
        # Long enough for the second actor to begin before the first has done everything.
        tasks=[tiny_models.task("up", 0.1, pause=0.15), tiny_models.task("down", -0.1)],
        budget={"evaluations": 40},
    )
    fronts = {}
    for executor, workers in (("in-process", 1), ("ray", 2)):
        run = tmp_path / executor
        done = evomerge(
            *("search", tmp_path / "c.yaml", "--run", run),
            *("--executor", executor, "--workers", workers),
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        fronts[executor] = json.loads(evomerge("front", run, "--json").stdout)
    for name in ("journal.jsonl", "scores.f32", "front.json"):
        assert (tmp_path / "ray" / name).read_bytes() == (
            tmp_path / "in-process" / name
        ).read_bytes(), name
    assert fronts["ray"] == fronts["in-process"]
    used = {
        line.split("worker=")[1].split()[0]
        for line in (tmp_path / "ray" / "events.log").read_text().splitlines()
        if "worker=" in line
    }
    assert len(used) == 2, f"both actors must have worked, saw {used}"
