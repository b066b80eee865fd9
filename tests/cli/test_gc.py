"""`evomerge gc`: only what can be made again goes, and only when it is told to."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from evomerge.storage.lease import Lease
from tests.cli.command import assert_one_line, tree

KEPT = ("journal.jsonl", "scores.f32", "config.yaml", "sources.json", "derived.npz", "front.json")


def dead_pid() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


@pytest.fixture
def litter(place):
    """What killed processes leave behind, and what living ones are writing."""
    pid = dead_pid()
    dead = [
        place.run / f".front.json.{pid}.tmp",
        place.run / "arrived" / f".00000009.json.{pid}.tmp",
        place.run / "arrived" / "00000001.json",
        place.run / "exports" / f"knee.partial-{pid}" / "model.safetensors",
        place.run.with_name(f".tiny.creating-{pid}") / "config.yaml",
    ]
    alive = [
        place.run / "arrived" / "00000077.json",
        place.run / "exports" / f"best.partial-{os.getpid()}" / "model.safetensors",
        place.run / "exports" / "done" / "model.safetensors",
    ]
    for path in (*dead, *alive):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1500)
    return dead, alive


def test_it_lists_and_with_yes_deletes(place, litter, evomerge):
    dead, alive = litter
    before = tree(place.folder)
    done = evomerge("gc", "tiny")
    assert (done.code, done.messages) == (0, [])
    assert "5 can be made again, 7.5 kB; --yes deletes them" in done.out
    assert tree(place.folder) == before
    facts = json.loads(evomerge("gc", "tiny", "--yes", "--json").out)
    assert (len(facts["items"]), facts["bytes"], facts["kept"]) == (5, 7500, [])
    assert not any(path.exists() for path in dead)
    assert all(path.exists() for path in alive)
    after = tree(place.folder)
    assert all(
        after[f"populations/tiny/{name}"] == before[f"populations/tiny/{name}"] for name in KEPT
    )
    assert evomerge("gc", "tiny").out == "0 can be made again, 0 bytes\n"
    assert evomerge("resume", "tiny").code == 0


def test_a_running_search_is_left_alone(place, litter, evomerge):
    holder = Lease(place.run)
    try:
        for options in ((), ("--yes",)):
            done = evomerge("gc", "tiny", *options)
            assert_one_line(done, 3, ("a search is running here",), "RunLocked")
    finally:
        holder.release()
    assert all(path.exists() for path in litter[0])


@pytest.fixture
def cache(place, evomerge, monkeypatch):
    """A cache with what two runs of different models want."""
    monkeypatch.setenv("EVOMERGE_CACHE", str(place.folder / "cache"))
    place.write()
    assert evomerge("search", "c.yaml", "--run", "first").code == 0
    shutil.copytree(place.model("y"), place.model("z"))
    data = bytearray(place.weights("z").read_bytes())
    data[-1] ^= 1
    place.weights("z").write_bytes(data)
    place.put("models.1.model", "models/z")
    place.write()
    assert evomerge("search", "c.yaml", "--run", "second").code == 0
    return place.folder / "cache"


def entries(cache):
    return {str(path.relative_to(cache)) for path in cache.glob("*/*") if path.is_dir()}


def test_entries_of_given_runs_stay(cache, evomerge):
    everything = entries(cache)
    both = json.loads(evomerge("gc", cache, "first", "second", "--json").out)
    assert both["items"] == []
    facts = json.loads(evomerge("gc", "first", cache, "--json").out)
    assert 0 < len(facts["items"]) < len(everything)
    assert entries(cache) == everything
    gone = {os.path.relpath(item["path"], cache) for item in facts["items"]}
    assert evomerge("gc", "first", cache, "--yes").code == 0
    assert entries(cache) == everything - gone
    assert json.loads(evomerge("gc", cache, "first", "--json").out)["items"] == []
    alone = json.loads(evomerge("gc", cache, "--json").out)
    assert len(alone["items"]) == len(entries(cache))


def test_ancestors_of_given_runs_stay(cache, place, evomerge):
    import torch

    from evomerge.config.locate import run_at
    from evomerge.config.models import open_models
    from evomerge.config.workers import read_run_config, read_sources
    from evomerge.merging.ancestor_store import KIND, AncestorStore
    from evomerge.merging.source import content_key
    from evomerge.storage.derived_cache import DerivedCache

    for name in ("first", "second"):
        run = run_at(place.folder / name)
        models = open_models(read_run_config(run), known=read_sources(run), check=False)
        store = AncestorStore(DerivedCache(cache), least_on_disk=1)
        store.models = tuple(content_key(models.sources[id]) for id in models.space.sources)
        store.keep(name, "t", [torch.zeros(3)])
        del store  # gives up its claim
    found = json.loads(evomerge("gc", "first", cache, "--json").out)["items"]
    (gone,) = (item for item in found if f"/{KIND}/" in item["path"])
    said = json.loads((cache / KIND / os.path.basename(gone["path"]) / "key.json").read_text())
    assert said["digest"] == "second"


def test_an_entry_in_use_stays(cache, evomerge):
    from evomerge.storage.derived_cache import DerivedCache

    path = next(cache.glob("*/*/*.safetensors"))
    body = json.loads((path.parent / "key.json").read_text())
    entry = DerivedCache(cache).entry(body.pop("kind"), body)
    assert entry.read(path.stem) is not None
    done = evomerge("gc", cache, "--yes")
    assert entries(cache) == {str(path.parent.relative_to(cache))}
    assert done.messages == [f"kept, in use or not removable: {path.parent}"]
    entry.close()


@pytest.mark.parametrize("name", ["models", "nothing", "c.yaml"])
def test_other_folders_are_refused(name, place, evomerge):
    place.write()
    before = tree(place.folder)
    done = evomerge("gc", name, "--yes")
    assert_one_line(done, 3, ("is neither a run folder nor a cache",), "RunError")
    assert tree(place.folder) == before


def test_models_that_are_gone_keep_the_cache(cache, place, evomerge):
    place.model("x").rename(place.folder / "elsewhere")
    before = entries(cache)
    done = evomerge("gc", cache, "first", "--yes")
    assert_one_line(done, 3, ("models/x",), "SourceError")
    assert entries(cache) == before
