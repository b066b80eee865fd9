"""Searching over cached transforms, through the command line, on tiny real models."""

import json
import shutil

import pytest
from safetensors.torch import load_file

from evomerge.config.workers import build_worker
from evomerge.core.recipe import Recipe

from .tiny_run import evomerge, journal

TRANSFORMS = [{"name": "tsv_m", "label": "tsv"}, {"name": "iso_c", "keep_parents": False}]


@pytest.fixture(scope="module")
def finished(tiny_models, tmp_path_factory):
    """One finished run with two virtual groups; the tests share it and its cache."""
    folder = tmp_path_factory.mktemp("transforms")
    tiny_models.write(
        folder / "c.yaml",
        transforms=[*TRANSFORMS[:1], {"name": "iso_c"}],
        merge={"name": "task_arithmetic", "groups": "layer"},
        budget={"evaluations": 16},
        runtime={"workers": 1, "threads": 1, "cache": "cache"},
    )
    done = evomerge("search", "c.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def told(run):
    return {e["id"]: e for e in journal(run) if e["kind"] == "told"}


def test_the_search_mixes_virtual_and_real_sources(finished):
    run = finished / "populations" / "tiny"
    asked = [e for e in journal(run) if e["kind"] == "asked"]
    mixes = ("base", "x", "y", "tsv:x", "tsv:y", "iso_c")
    whole_merges = ("founder: model stock", "founder: ties")
    for event in asked:
        sources = ("base", "x", "y") if event["origin"] in whole_merges else mixes
        assert tuple(event["recipe"]["sources"]) == sources
    origins = [e["origin"] for e in asked]
    assert {"founder: tsv:x", "founder: tsv", "founder: iso_c", *whole_merges} <= set(origins)
    transforms = json.loads((run / "manifest.json").read_text())["transforms"]
    assert [item["sources"] for item in transforms] == [["tsv:x", "tsv:y"], ["iso_c"]]
    assert all("transformed" in item["tensors"].values() for item in transforms)
    assert all("error" not in event for event in told(run).values())
    record = {item["id"]: item for item in json.loads((run / "sources.json").read_text())}
    assert record["tsv:y"]["transform"]["of"] == ["x", "y"]
    assert list((finished / "cache" / "transform").glob("*/key.json"))


@pytest.mark.slow
def test_resuming_reads_the_cache_and_gives_the_same_journal(finished, tiny_models, tmp_path):
    run = tmp_path / "run"
    config = finished / "c.yaml"
    short = evomerge("search", config, "--run", run, "--set", "budget.evaluations=9")
    assert short.returncode == 0, short.stderr
    shutil.rmtree(finished / "cache")
    done = evomerge("resume", run, "--evaluations", "16")
    assert done.returncode == 0, done.stderr
    assert list((finished / "cache" / "transform").glob("*/*.safetensors")), "computed again"
    assert len(told(run)) == 16
    founders = len([e for e in journal(run) if e.get("origin", "").startswith("founder")])
    whole = told(finished / "populations" / "tiny")
    for number in range(founders):
        assert told(run)[number]["weights"] == whole[number]["weights"]


def test_a_worker_computes_what_the_cache_lost(finished):
    run = finished / "populations" / "tiny"
    shutil.rmtree(finished / "cache", ignore_errors=True)
    worker = build_worker(run, "cpu", 1, "worker")
    for event in journal(run):
        if event["kind"] == "asked":
            recipe = Recipe.from_json(event["recipe"], where="journal")
            assert worker.install(recipe) == told(run)[event["id"]]["weights"]
    assert list((finished / "cache" / "transform").glob("*/*.safetensors"))


@pytest.mark.slow
def test_an_export_is_what_was_scored_and_merges_to_the_same_bytes(finished, tmp_path):
    out, again = tmp_path / "out", tmp_path / "again"
    run = finished / "populations" / "tiny"
    number = next(e["id"] for e in journal(run) if e.get("origin") == "founder: tsv")
    spec = f"candidate:{number}"
    done = evomerge("export", "tiny", "--pick", spec, "--out", out, "--verify", cwd=finished)
    assert done.returncode == 0, done.stderr
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["weights_digest"] == told(run)[number]["weights"]
    assert [item["label"] for item in recipe["transforms"]] == ["tsv", "iso_c"]
    assert not (out / "mergekit_config.yml").exists()
    card = (out / "README.md").read_text()
    assert "computed: tsv_m of x, y" in card
    assert "is computed by a transform" in card
    env = {"EVOMERGE_CACHE": str(tmp_path / "own")}
    done = evomerge("merge", out / "recipe.json", "--out", again, env=env)
    assert done.returncode == 0, done.stderr
    one, two = (load_file(folder / "model.safetensors") for folder in (out, again))
    assert one.keys() == two.keys()
    assert all((one[name] == two[name]).all() for name in one)


@pytest.mark.slow
def test_a_search_over_the_new_parents_alone(tiny_models, tmp_path):
    env = {"EVOMERGE_CACHE": str(tmp_path / "cache")}
    tiny_models.write(
        tmp_path / "c.yaml",
        transforms=[*TRANSFORMS[1:], {"name": "tsv_m", "of": ["x"]}],
        merge={"name": "linear", "normalize": False},
        algorithm={"name": "m2n2", "population_size": 4},
        budget={"evaluations": 8},
    )
    done = evomerge("search", tmp_path / "c.yaml", "--run", tmp_path / "run", env=env)
    assert done.returncode == 0, done.stderr
    asked = [e for e in journal(tmp_path / "run") if e["kind"] == "asked"]
    assert {tuple(e["recipe"]["sources"]) for e in asked} == {("base", "iso_c", "tsv_m:x")}
    out, again = tmp_path / "out", tmp_path / "again"
    assert evomerge("export", tmp_path / "run", "--out", out, env=env).returncode == 0
    done = evomerge("merge", out / "recipe.json", "--out", again, env=env)
    assert done.returncode == 0, done.stderr
    one, two = (load_file(folder / "model.safetensors") for folder in (out, again))
    assert all((one[name] == two[name]).all() for name in one)


def test_check_names_the_virtual_sources_and_computes_nothing(tiny_models, tmp_path):
    env = {"EVOMERGE_CACHE": str(tmp_path / "cache")}
    tiny_models.write(tmp_path / "c.yaml", transforms=["tsv_m"])
    done = evomerge("check", tmp_path / "c.yaml", "--json", env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["models"]["tsv_m:x"] == "tsv_m of x, y"
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_what_a_transform_lacks_is_said(tiny_models, tmp_path):
    tiny_models.write(tmp_path / "c.yaml", transforms=["tsv_m"], base_model=None)
    done = evomerge("search", tmp_path / "c.yaml", "--run", tmp_path / "run")
    assert done.returncode == 2
    assert "give a `base_model:`" in done.stderr
    assert not (tmp_path / "run").exists()


def test_prepare_fills_the_cache_once(tiny_models, tmp_path):
    env = {"EVOMERGE_CACHE": str(tmp_path / "cache")}
    tiny_models.write(tmp_path / "c.yaml", transforms=["tsv_m"])
    counts = []
    for _ in range(2):
        done = evomerge("prepare", tmp_path / "c.yaml", "--json", env=env)
        assert done.returncode == 0, done.stderr
        kinds = {kind["kind"]: kind for kind in json.loads(done.stdout)["kinds"]}
        counts.append((kinds["transform tsv_m"]["done"], kinds["transform tsv_m"]["reused"]))
    assert counts[0][0] > 0
    assert counts == [(counts[0][0], 0), (0, counts[0][0])]
