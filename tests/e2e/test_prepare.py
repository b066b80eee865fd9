"""`evomerge prepare` through the command line: in this process, killed in one of its own."""

import json
import shutil
import time

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.command import command
from tests.e2e.tiny_run import journal, start

KINDS = ["grams", "histograms", "quantiles", "rank-codes", "variances", "block-grams"]
PARENTS = {"look_ahead": 6, "founders": "parents"}  # no founder that needs statistics of its own


@pytest.fixture
def evomerge(capsys, monkeypatch):
    """Run the command line with a cache of its own."""

    def run(*arguments, cache=None):
        if cache is not None:
            monkeypatch.setenv("EVOMERGE_CACHE", str(cache))
        return command(capsys, *arguments)

    return run


@pytest.fixture
def prepare(evomerge):
    """Prepare a config and return what was done, by kind."""

    def run(config, cache, *arguments):
        done = evomerge("prepare", config, "--json", *arguments, cache=cache)
        assert done.code == 0, done.err
        return {kind.pop("kind"): kind for kind in json.loads(done.out)["kinds"]}

    return run


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def test_every_kind_is_computed_once_and_then_reused(tiny_models, tmp_path, prepare):
    config = tiny_models.write(tmp_path / "c.yaml")
    cache = tmp_path / "cache"
    first = prepare(config, cache, "--all")
    assert list(first) == KINDS
    assert all(kind["done"] > 0 and kind["reused"] == 0 for kind in first.values())
    before = files_of(cache)
    second = prepare(config, cache, "--all")
    assert files_of(cache) == before
    for name, kind in second.items():
        assert (kind["done"], kind["reused"]) == (0, first[name]["done"])
        assert kind["n_bytes"] == first[name]["n_bytes"]


@pytest.mark.parametrize(
    ("merge", "kinds"),
    [
        ({"name": "task_arithmetic"}, []),
        ({"name": "ties"}, ["histograms", "quantiles"]),
        ({"name": "della"}, ["rank-codes"]),
        ({"name": "karcher"}, ["grams"]),
    ],
)
def test_merge_method_and_founders_get_the_kinds_they_need(
    tiny_models, tmp_path, prepare, merge, kinds
):
    config = tiny_models.write(tmp_path / "c.yaml", merge=merge, search=PARENTS)
    assert list(prepare(config, tmp_path / "cache")) == kinds
    config = tiny_models.write(tmp_path / "c.yaml", merge=merge)
    of_founders = {"grams", "histograms"}  # Model Stock and TIES
    expected = [kind for kind in KINDS if kind in {*kinds, *of_founders}]
    assert list(prepare(config, tmp_path / "other")) == expected


def test_people_get_a_line_per_kind_and_the_config_names_the_folder(
    tiny_models, tmp_path, evomerge
):
    runtime = {"workers": 1, "threads": 1, "cache": "here"}
    merge = {"name": "ties"}
    config = tiny_models.write(tmp_path / "c.yaml", merge=merge, runtime=runtime, search=PARENTS)
    done = evomerge("prepare", config)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("histograms: 2 computed, 0 reused, ")
    assert lines[1].startswith("quantiles: ")
    assert lines[2] == f"cache: {tmp_path / 'here'}"
    assert files_of(tmp_path / "here")


def test_a_new_expert_costs_only_its_own(tiny_models, tmp_path, prepare):
    cache = tmp_path / "cache"
    models = [{"name": name, "model": str(tiny_models.folder / name)} for name in ("x", "y")]
    same = {"merge": {"name": "ties"}, "search": PARENTS}
    one = tiny_models.write(tmp_path / "1.yaml", models=models[:1], **same)
    two = tiny_models.write(tmp_path / "2.yaml", models=models[::-1], **same)
    first = prepare(one, cache)
    second = prepare(two, cache)
    for name, kind in second.items():
        assert kind["done"] == kind["reused"] == first[name]["done"]


def test_a_budget_too_small_says_what_to_do(tiny_models, tmp_path, evomerge):
    config = tiny_models.write(tmp_path / "c.yaml")
    cache = tmp_path / "cache"
    done = evomerge("prepare", config, "--all", "--budget", "20KB", cache=cache)
    assert done.code == 2
    assert "Give a larger --budget" in done.err
    assert sum(p.stat().st_size for p in cache.rglob("*") if p.is_file()) < 20_000
    done = evomerge("prepare", config, "--budget", "20 parsecs", cache=cache)
    assert done.code == 2
    assert "expected a size such as 20GB" in done.err


def test_a_budget_holds_for_what_was_there_already(tiny_models, tmp_path, prepare, evomerge):
    config = tiny_models.write(tmp_path / "c.yaml", merge={"name": "della"}, search=PARENTS)
    cache = tmp_path / "cache"
    prepare(config, cache, "--all")
    size = sum(p.stat().st_size for p in cache.rglob("*") if p.is_file())
    prepare(config, cache, "--budget", str(size // 2))
    left = {p.parent.name for p in cache.glob("*/*") if any(p.glob("*.safetensors"))}
    assert sum(p.stat().st_size for p in cache.rglob("*") if p.is_file()) <= size // 2
    assert "rank-codes" in left
    before = files_of(cache)
    done = evomerge("prepare", config, "--budget", "1KB", cache=cache)
    assert done.code == 2
    assert "all entries in use take" in done.err
    again = prepare(config, cache)
    assert all(kind["done"] == 0 for kind in again.values()), "what is in use was not removed"
    assert files_of(cache).items() <= before.items()


@pytest.fixture(scope="module")
def medium_models(tmp_path_factory):
    """Models large enough that a preparation can be killed in the middle."""
    folder = tmp_path_factory.mktemp("medium")
    rng = torch.Generator().manual_seed(0)
    base = {f"l.{i}.weight": torch.randn(700, 700, generator=rng) for i in range(24)}
    for k, name in enumerate(("base", "x", "y")):
        tensors = {n: t + 0.01 * k * torch.randn(t.shape, generator=rng) for n, t in base.items()}
        save_file(tensors, folder / f"{name}.safetensors")
    return folder


def test_kill_9_in_the_middle_loses_only_the_item_at_hand(
    medium_models, tiny_models, tmp_path, prepare
):
    config = tiny_models.write(
        tmp_path / "c.yaml",
        base_model=str(medium_models / "base.safetensors"),
        models=[
            {"name": name, "model": str(medium_models / f"{name}.safetensors")}
            for name in ("x", "y")
        ],
    )
    whole = tmp_path / "whole"
    wanted = prepare(config, whole, "--all")
    cache = tmp_path / "cache"
    log = tmp_path / "log"
    n_kills, kept = 0, {}
    for n_files in (3, 30, 60, 100):
        child = start("prepare", config, "--all", log=log, env={"EVOMERGE_CACHE": str(cache)})
        while child.poll() is None and len(files_of(cache)) < n_files:
            time.sleep(0.002)
        n_kills += child.poll() is None
        child.kill()
        child.wait()
        now = files_of(cache)
        assert {path: now[path] for path in kept} == kept, "what was there is not computed again"
        kept = now
    assert n_kills >= 2, log.read_text()
    done = prepare(config, cache, "--all")
    assert sum(kind["reused"] for kind in done.values()) == len(kept) > 0
    for name, kind in wanted.items():
        assert done[name]["done"] + done[name]["reused"] == kind["done"]
    found = {path.relative_to(cache): path.read_bytes() for path in files_of(cache)}
    expected = {path.relative_to(whole): path.read_bytes() for path in files_of(whole)}
    assert found == expected


@pytest.mark.parametrize("method", ["ties", "della"])
def test_a_search_gives_the_same_journal_whatever_the_cache_holds(
    tiny_models, tmp_path, evomerge, prepare, method
):
    config = tiny_models.write(
        tmp_path / "c.yaml", merge={"name": method}, budget={"evaluations": 6}
    )
    cache = tmp_path / "cache"
    prepare(config, cache)
    before = files_of(cache)
    weights = []
    for number, folder in enumerate((cache, tmp_path / "cold")):
        run = tmp_path / f"run-{number}"
        done = evomerge("search", config, "--run", run, cache=folder)
        assert done.code == 0, done.err
        weights.append([event.get("weights") for event in journal(run)])
    assert weights[0] == weights[1]
    assert any(weights[0])
    assert files_of(cache) == before
    assert files_of(tmp_path / "cold"), "the search fills the cache itself"
    shutil.rmtree(tmp_path / "cold")
    more = evomerge("resume", tmp_path / "run-1", "--evaluations", "8")
    assert more.code == 0, more.err
