"""A race through the command line: stopped, resumed, listed and exported like any run."""

from __future__ import annotations

import json
import signal
import time

import pytest

from .tiny_run import evomerge, journal, start


def raced(tiny_models, path, pause=0.0):
    tasks = [tiny_models.task("up", 0.1, pause, 24), tiny_models.task("down", 0.1, 0.0, 24)]
    return tiny_models.write(
        path,
        tasks=tasks,
        algorithm={"name": "cma_es"},
        racing={"name": "paired", "first": 8},
        search={"look_ahead": 3},
        budget={"evaluations": 24},
    )


@pytest.mark.slow
def test_a_raced_run_that_was_killed_ends_as_one_that_was_not(tiny_models, tmp_path):
    whole = tmp_path / "whole"
    config = raced(tiny_models, tmp_path / "c.yaml")
    done = evomerge("search", config, "--run", whole)
    assert done.returncode == 0, done.stderr
    cut = tmp_path / "cut"
    process = start("search", config, "--run", cut, log=tmp_path / "log")
    while not (cut / "journal.jsonl").exists() or len(journal(cut)) < 25:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert evomerge("resume", cut).returncode == 0
    assert (cut / "journal.jsonl").read_bytes() == (whole / "journal.jsonl").read_bytes()
    assert (cut / "scores.f32").read_bytes() == (whole / "scores.f32").read_bytes()

    events = journal(whole)[1:]
    parts = [e for e in events if e["kind"] == "told" and "objectives" not in e]
    assert parts, "nothing was dropped: the race did not take place"
    asked = [e for e in events if e["kind"] == "asked"]
    cost = sum(48 if "examples" not in e else int(e["examples"].split(":")[0]) for e in asked)
    assert 24 * 48 <= cost < 25 * 48
    status = json.loads(evomerge("status", whole, "--json").stdout)
    assert status["state"] == "done"
    assert 24 <= status["done"] < 25
    full = {e["id"] for e in events if e["kind"] == "told" and "objectives" in e}
    front = json.loads(evomerge("front", whole, "--json").stdout)
    assert {member["candidate"] for member in front} <= full
    exported = evomerge("export", whole, "--pick", "knee", "--out", tmp_path / "out", "--verify")
    assert exported.returncode == 0, exported.stderr


def test_a_race_that_cannot_work_is_refused_before_anything_is_written(tiny_models, tmp_path):
    config = raced(tiny_models, tmp_path / "c.yaml")
    again = ["search", config, "--run", tmp_path / "run", "--set"]
    refused = evomerge(*again, "racing.test=wilcoxen")
    assert refused.returncode == 2
    assert "Did you mean 'wilcoxon'" in refused.stderr
    refused = evomerge(*again, "racing={name: lossless}")
    assert refused.returncode == 2
    assert "`paired` or `halving`" in refused.stderr
    assert not (tmp_path / "run").exists()
