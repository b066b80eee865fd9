"""Searches whose workers hold no model: candidates are merged and scored by a server."""

import contextlib
import os
import subprocess
import sys
import threading

import pytest
import yaml

from evomerge.config.schema import load_config
from evomerge.config.serve import build_server
from evomerge.core.recipe import Recipe
from tests.e2e import real_project as rp
from tests.evaluation.faulty_server import Faulty, running

TOKEN = "a-token-for-tests"
PROMPTS = ("the cat", "a dog and the", "this is", "what the", "hello the other", "one the two")


def tasks(folder):
    """Return the tasks of a search in process: multiple choice and exact match."""
    choice = rp.write_rows(
        folder / "choice.jsonl",
        [
            {"prompt": text, "options": ["a", "b", "c", "d"], "gold": i % 4}
            for i, text in enumerate(PROMPTS * 2)
        ],
    )
    exact = rp.write_rows(
        folder / "exact.jsonl",
        [{"prompt": p, "answer": a} for p, a in zip(PROMPTS, "WSWFFS", strict=True)],
    )
    return [
        {"name": "choice", "evaluator": {"name": "multiple_choice", "examples": str(choice)}},
        {
            "name": "exact",
            "evaluator": {
                "name": "exact_match",
                "examples": str(exact),
                "max_new_tokens": 6,
                "pattern": "[A-Z]",
            },
        },
    ]


def served(task, **server):
    """Return the same task, asked of a server."""
    body = dict(task["evaluator"])
    return {
        "name": task["name"],
        "evaluator": {
            **body,
            "name": "endpoint",
            "scoring": body["name"],
            "candidate": {
                "install": "recipe",
                "server": {
                    "url": "$TEST_CANDIDATES",
                    "api_key_env": "EVOMERGE_SERVER_TOKEN",
                    "first_wait_seconds": 0.01,
                    **server,
                },
            },
        },
    }


@contextlib.contextmanager
def serving(config):
    """Run `evomerge serve` in a process of its own; yields its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "evomerge", "serve", str(config), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "EVOMERGE_SERVER_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"},
    )
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), process.stderr.read()
        yield url
    finally:
        process.terminate()
        assert process.wait(30) == 0
        process.stdout.close()
        process.stderr.close()


@contextlib.contextmanager
def serving_here(config):
    """The same in a thread; yields its address."""
    server = build_server(load_config(config), config.parent, host="127.0.0.1", port=0, token=TOKEN)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.url
    finally:
        server.close()
        thread.join()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api-only")
    base = rp.llama()
    rp.save(base, folder / "base")
    for seed, name in ((1, "x"), (2, "y")):
        rp.save(rp.perturbed(base, seed, scale=0.5), folder / name)
    return folder


def write(folder, body):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(body, sort_keys=False))
    return folder / "config.yaml"


def results(run):
    """Return what a journal says about every candidate."""
    told = [event for event in rp.journal(run) if event["kind"] == "told"]
    keys = ("id", "objectives", "scores", "weights", "error")
    return [{key: event.get(key) for key in keys} for event in told]


@pytest.mark.slow
def test_a_served_search_equals_the_same_search_in_process(project, tmp_path, monkeypatch):
    own = tasks(tmp_path)
    changes = {
        "algorithm": {"name": "evo_merging", "population_size": 4},
        "merge": {"name": "evo_merging"},
        "budget": {"evaluations": 14},
    }
    body = rp.config(project, own, **changes)
    in_process = write(tmp_path / "in-process", body)
    rp.cli("search", in_process, "--run", tmp_path / "a", "--json")
    monkeypatch.setenv("EVOMERGE_SERVER_TOKEN", TOKEN)
    body = {**body, "tasks": [served(task) for task in own]}
    api_only = write(tmp_path / "api-only", body)
    with serving(in_process) as url:
        monkeypatch.setenv("TEST_CANDIDATES", url)
        rp.cli("search", api_only, "--run", tmp_path / "b", "--json")
    found = results(tmp_path / "b")
    assert len(found) == 14
    assert found == results(tmp_path / "a")
    assert len({str(row["scores"]) for row in found}) > 1, "every candidate scores alike"
    log = (tmp_path / "b" / "events.log").read_text()
    assert "usage requests=" in log
    everything = b"".join(p.read_bytes() for p in (tmp_path / "b").rglob("*") if p.is_file())
    assert TOKEN.encode() not in everything
    assert rp.cli("status", tmp_path / "b", "--json").json["usage"]["requests"] > 14


@pytest.mark.slow
def test_a_server_that_dies_stops_the_run_and_a_resume_elsewhere_finishes_it(
    project, tmp_path, monkeypatch
):
    """Its last candidate is scored again, not recorded as failed."""
    own = tasks(tmp_path)[1:]
    body = rp.config(
        project,
        own,
        budget={"evaluations": 6},
        algorithm={"name": "cma_es"},
        merge={"name": "ties", "groups": "layer"},
    )
    rp.cli("search", write(tmp_path / "in-process", body), "--run", tmp_path / "a")
    monkeypatch.setenv("EVOMERGE_SERVER_TOKEN", TOKEN)
    served_tasks = [served(task, attempts=2) for task in own]
    api_only = write(tmp_path / "api-only", {**body, "tasks": served_tasks})
    run = tmp_path / "b"
    with serving_here(tmp_path / "in-process" / "config.yaml") as url:
        monkeypatch.setenv("TEST_CANDIDATES", url)
        rp.cli("search", api_only, "--run", run, "--set", "budget.evaluations=3")
    said = rp.cli("search", api_only, "--run", run, expect=3)
    assert "cannot be reached" in said.err
    assert "resume" in said.err
    with serving_here(tmp_path / "in-process" / "config.yaml") as url:
        monkeypatch.setenv("TEST_CANDIDATES", url)
        # What says how a server is reached may change between the two.
        body = {**body, "tasks": [served(task, attempts=3) for task in own]}
        rp.cli("search", write(tmp_path / "other", body), "--run", run)
    assert results(run) == results(tmp_path / "a")


def stand_in():
    """Return a server that keeps the contract and answers a letter that the recipe decides."""
    held = {}

    def answer(path, body):
        if path == "/evomerge/v1/install":
            held["version"] = f"evomerge-{Recipe.from_json(body['recipe']).digest()}"
            return {"version": held["version"]}
        if path == "/evomerge/v1/version":
            sources = dict.fromkeys(("base", "x", "y"))
            return {"protocol": 1, "version": held.get("version"), "sources": sources}
        letter = "W" if int(held["version"][-1], 16) % 2 else "S"
        return {"model": held["version"], "choices": [{"text": letter}]}

    return Faulty(answer)


FAULTS = {
    "slow": "no answer in 0.3 s, in 2 attempts",
    "garbage": "answered garbage",
    429: "HTTP 429: come back later, in 2 attempts",
    401: "HTTP 401: come back later. Check url, model and api_key_env",
}


def test_whatever_a_server_does_is_said_and_the_run_goes_on_afterwards(
    project, tmp_path, monkeypatch
):
    monkeypatch.setenv("EVOMERGE_SERVER_TOKEN", TOKEN)
    settings = {"attempts": 2, "timeout_seconds": 0.3, "concurrency": 2}
    own = [served(task, **settings) for task in tasks(tmp_path)[1:]]
    body = rp.config(project, own, budget={"evaluations": 4 * len(FAULTS) + 4})
    config = write(tmp_path / "config", body)
    run = tmp_path / "run"
    with running(stand_in()) as server:
        monkeypatch.setenv("TEST_CANDIDATES", server.url)
        server.says = "come back later"
        for number, (fault, message) in enumerate(FAULTS.items()):
            # Two candidates are scored before the server begins to misbehave.
            server.moves = [None] * 19 + [fault] * 100
            said = rp.cli("search", config, "--run", run, expect=3)
            assert message in said.err, fault
            assert "Traceback" not in said.err
            told = [event for event in rp.journal(run) if event["kind"] == "told"]
            assert len(told) >= number + 1
        server.moves = []
        rp.cli("search", config, "--run", run)
    found = results(run)
    assert len(found) == 4 * len(FAULTS) + 4
    assert [row["id"] for row in found] == list(range(len(found)))
    assert not any(row["error"] for row in found)
    assert rp.cli("status", run, "--json").json["usage"]["requests"] > len(found)
    assert rp.cli("check", config, "--json").json["memory_per_worker_bytes"] == 0
    # The server does not say a digest, so none is compared.
    rp.cli("export", run, "--pick", "candidate:0", "--out", tmp_path / "out")
    verify = ("--pick", "candidate:1", "--out", tmp_path / "other", "--verify")
    assert "is scored by a server" in rp.cli("export", run, *verify, expect=2).err
