"""LiNeS, Model Stock and TIES through the command line, on tiny real models."""

import json

import pytest
import yaml

from evomerge.config.workers import build_worker
from evomerge.core.recipe import Recipe

from .tiny_run import evomerge, journal

pytestmark = pytest.mark.slow


def asked(run):
    return {e["origin"]: e for e in journal(run) if e["kind"] == "asked"}


def weights_of(run, number):
    return next(e["weights"] for e in journal(run) if e["kind"] == "told" and e["id"] == number)


def test_a_scaled_search_measures_alpha_once_and_goes_on(tiny_models, tmp_path):
    merge = {"name": "ties", "density": 0.3, "layer_scale": {"alpha": "auto", "beta": [0, 1.5]}}
    config = tiny_models.write(tmp_path / "c.yaml", merge=merge, budget={"evaluations": 12})
    done = evomerge("search", config, "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    alpha = stored["merge"]["layer_scale"]["alpha"]
    assert 0.5 < alpha < 2.0
    found = asked(tmp_path / "run")
    assert found["founder: initial values"]["recipe"]["params"]["layer_scale.alpha"] == [alpha]
    assert "layer_scale.alpha" not in found["founder: ties"]["recipe"]["params"]
    assert all("error" not in e for e in journal(tmp_path / "run") if e["kind"] == "told")
    again = evomerge("search", config, "--run", tmp_path / "run")
    assert "resumed" in again.stderr, again.stderr
    number = found["founder: initial values"]["id"]
    out = tmp_path / "out"
    pick = f"candidate:{number}"
    done = evomerge("export", tmp_path / "run", "--pick", pick, "--out", out, "--verify", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["weights_digest"] == weights_of(tmp_path / "run", number)
    paths = json.loads((out / "manifest.json").read_text())["tensors"].values()
    assert {path.partition(":")[0] for path in paths} == {"merged", "fallback"}
    again = evomerge("merge", out / "recipe.json", "--out", tmp_path / "again", "--json")
    assert again.returncode == 0, again.stderr


def test_check_sums_up_the_paths(tiny_models, tmp_path):
    config = tiny_models.write(tmp_path / "c.yaml", merge={"name": "ties"})
    said = evomerge("check", config)
    assert said.returncode == 0, said.stderr
    line = next(line for line in said.stdout.splitlines() if " tensors: " in line)
    assert "fallback (at most one axis, combined without trim or vote)" in line


def test_m2n2_breeds_from_model_stock(tiny_models, tmp_path):
    config = tiny_models.write(
        tmp_path / "c.yaml",
        merge={"name": "linear", "normalize": False},
        algorithm={"name": "m2n2", "population_size": 4},
    )
    facts = json.loads(evomerge("check", config, "--json").stdout)
    run = tmp_path / "run"
    done = evomerge("search", config, "--run", run)
    assert done.returncode == 0, done.stderr
    found = asked(run)
    assert sum(origin.startswith("founder") for origin in found) == facts["founders"]
    assert "founder: ties" not in found
    stock = found["founder: model stock"]
    assert (stock["recipe"]["operator"], stock["recipe"]["grouping"]) == ("linear", "segments")
    worker = build_worker(run, "cpu", 1, "worker")
    plain = Recipe("model_stock", ("base", "x", "y"), {})
    assert worker.install(plain) == weights_of(run, stock["id"])
    assert all("error" not in e for e in journal(run) if e["kind"] == "told")
