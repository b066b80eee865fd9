"""M2N2 from scratch on a real model: seeded noise and ancestors, killed, resumed, exported."""

import json
import os
import shutil
import signal
import time

import pytest
from safetensors.torch import load_file

from evomerge.core.ancestry import ancestor_name
from evomerge.core.recipe import canonical_json
from evomerge.storage.journal import GENESIS, chain_hash

from .tiny_run import evomerge, journal, start

SCRATCH = {
    "base_model": None,
    "merge": {"name": "linear", "normalize": False},
    "algorithm": {"name": "m2n2", "population_size": 4, "mutation": 0.01, "max_noise": 4},
    "search": {"look_ahead": 2, "founders": "parents"},
    "budget": {"evaluations": 50},
}


def wait_for_results(run, n: int) -> None:
    """Wait until a search in another process was told n results."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        path = run / "journal.jsonl"
        if path.exists() and path.read_bytes().count(b'"kind":"told"') >= n:
            return
        time.sleep(0.02)
    raise AssertionError("no results")


def made(event) -> list[str]:
    return [name for name in event["recipe"]["sources"] if ":" in name]


def edit(run, ancestor: str) -> None:
    """Change the recipe of an ancestor in a journal, whose chain of hashes is made anew."""
    events, link, lines = journal(run), GENESIS, []
    for event in events:
        if ancestor_name(str(event.get("digest"))) == ancestor:
            event["recipe"]["params"]["weights"][0][0] += 0.25
        link = chain_hash(link, canonical_json(event))
        lines.append(canonical_json({"chain": link, "event": event}))
    (run / "journal.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.slow
def test_a_search_with_ancestors_is_killed_resumed_and_merged_again(tiny_models, tmp_path):
    tasks = [tiny_models.task("up", 0.1, pause=0.1), tiny_models.task("down", -0.1)]
    config = tiny_models.write(tmp_path / "c.yaml", **SCRATCH, tasks=tasks)
    run, killed = tmp_path / "run", tmp_path / "killed"
    quick = {"TINY_PAUSES": "0", "EVOMERGE_CACHE": str(tmp_path / "cache")}
    done = evomerge("search", config, "--run", run, env=quick)
    assert done.returncode == 0, done.stderr

    process = start("search", config, "--run", killed, log=tmp_path / "log")
    wait_for_results(killed, 25)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = evomerge("resume", killed, env=quick)
    assert done.returncode == 0, done.stderr
    assert (killed / "journal.jsonl").read_bytes() == (run / "journal.jsonl").read_bytes()

    asked = [event for event in journal(run) if event["kind"] == "asked"]
    assert max(len(made(event)) for event in asked) == 4
    assert not any("ancestors" in event["recipe"] for event in asked), "they have their own lines"
    digests = [event["digest"] for event in asked]
    named = {n.split(":")[1] for event in asked for n in made(event) if n.startswith("ancestor:")}
    assert len(named) > 4
    assert named < set(digests)

    last = next(e for e in reversed(asked) if made(e)[0].startswith("ancestor:"))["id"]
    out = tmp_path / "out"
    done = evomerge(
        "export", run, "--pick", f"candidate:{last}", "--out", out, "--verify", "--json"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["rescored_examples"] == 24
    assert not (out / "mergekit.yaml").exists()
    card, record = (out / "README.md").read_text(), json.loads((out / "recipe.json").read_text())
    assert "noise" in card
    assert "is the model of an earlier candidate" in card
    assert f"the recipes of all {len(record['recipe']['ancestors'])}" in card
    done = evomerge("replay", run, "--candidate", str(last), "--json", env=quick)
    assert done.returncode == 0, done.stdout

    done = evomerge("merge", out / "recipe.json", "--out", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    places = (out, tmp_path / "again")
    first, again = (load_file(place / "model.safetensors") for place in places)
    assert all(first[name].equal(again[name]) for name in first)
    digests = {json.loads((f / "recipe.json").read_text())["weights_digest"] for f in places}
    told = next(e for e in journal(run) if e["kind"] == "told" and e["id"] == last)
    assert digests == {told["weights"]}


@pytest.mark.slow
def test_an_old_run_with_ancestors_begins_a_new_one(tiny_models, tmp_path):
    config = tiny_models.write(tmp_path / "c.yaml", **SCRATCH)
    for run, *more in (("old",), ("new", "--warm-start", tmp_path / "old")):
        done = evomerge("search", config, "--run", tmp_path / run, *more)
        assert done.returncode == 0, done.stderr
    asked = [event for event in journal(tmp_path / "old") if event["kind"] == "asked"]
    last = next(e for e in reversed(asked) if made(e)[0].startswith("ancestor:"))
    named = made(last)
    taken = json.loads((tmp_path / "new" / "warm_start.json").read_text())
    assert not any("ancestors" in item["recipe"] for item in taken)
    new = [event for event in journal(tmp_path / "new") if event["kind"] == "asked"]
    assert any(name.startswith("ancestor:") for event in new[52:] for name in made(event))
    edited = tmp_path / "edited"
    shutil.copytree(tmp_path / "old", edited)
    edit(edited, named[0])
    for arguments in (
        ("search", config, "--run", tmp_path / "never", "--warm-start", edited),
        ("export", edited, "--pick", f"candidate:{last['id']}", "--out", tmp_path / "out"),
    ):
        done = evomerge(*arguments)
        assert done.returncode == 3, done.stderr
        assert f"what is given as {named[0]} is another recipe" in done.stderr
        assert "Traceback" not in done.stderr
    done = evomerge("resume", tmp_path / "new", "--evaluations", "60")
    assert done.returncode == 0, done.stderr
    done = evomerge("report", tmp_path / "new", "--out", tmp_path / "report.html")
    assert done.returncode == 0, done.stderr
    done = evomerge("front", tmp_path / "new")
    assert done.returncode == 0, done.stderr


@pytest.mark.cluster
def test_ancestors_travel_to_ray_workers(tiny_models, tmp_path):
    config = tiny_models.write(tmp_path / "c.yaml", **SCRATCH)
    for executor, workers in (("in-process", 1), ("ray", 2)):
        done = evomerge(
            *("search", config, "--run", tmp_path / executor),
            *("--executor", executor, "--workers", workers),
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
    for name in ("journal.jsonl", "scores.f32", "front.json"):
        one, other = ((tmp_path / e / name).read_bytes() for e in ("in-process", "ray"))
        assert one == other, name
