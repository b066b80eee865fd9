"""`submit`, `logs`, `stop` and `status --address` against a real Ray head with dashboard."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.command import Finished, command
from tests.cluster.ray_head import TOKEN, Head, ray_head
from tests.e2e.tiny_run import TinyModels, evomerge, journal

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]

Call = Callable[..., Finished]


def _wait_while(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 180
    while condition():
        assert time.monotonic() < until
        time.sleep(0.5)


def test_a_search_is_submitted_stopped_submitted_again_and_ends(
    tiny_models: TinyModels, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "tiny"
    slow = tiny_models.task("up", 0.1, pause=0.3)
    config = tiny_models.write(
        tmp_path / "config.yaml",
        tasks=[slow, tiny_models.task("down", -0.1)],
        budget={"evaluations": 4000},  # longer than it is let run
        runtime={"executor": "ray", "workers": 2, "gpus_per_worker": 0, "threads": 1},
    )
    with ray_head(tmp_path) as head:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
            monkeypatch.setenv(name, head.environment[name])

        def call(*arguments: object, code: int = 0) -> Finished:
            done = command(capsys, *arguments, "--address", head.url)
            assert done.code == code, done
            assert TOKEN not in done.out + done.err
            return done

        def state() -> str:
            return json.loads(call("status", "tiny", "--json").out)["job"]["state"]

        def told() -> list[int]:
            events = journal(run) if (run / "journal.jsonl").exists() else []
            return [event["id"] for event in events if event["kind"] == "told"]

        submitted = call("submit", config, "--run", run, "--json")
        assert json.loads(submitted.out)["job"] == "tiny"
        # While it runs, whoever looks: the job, and then the lease.
        assert "RunLockedError" in call("submit", config, "--run", run, code=3).err
        other = call("submit", config, "--run", tmp_path / "other" / "tiny", code=3)
        assert f"that of another run, {run}" in other.err
        _wait_while(lambda: len(told()) < 3 and state() in ("PENDING", "RUNNING"))
        assert len(told()) >= 3, call("logs", "tiny").out
        driven = call("submit", config, "--run", run, code=3)
        assert "a driver is running this search already" in driven.err

        assert "draining" in call("stop", "tiny").out
        _wait_while(lambda: state() in ("PENDING", "RUNNING"))
        assert state() == "STOPPED"
        evaluations = len(told()) + 6
        assert "draining" in call("logs", "tiny").out
        assert "had ended before" in call("stop", "tiny").out

        less = ("--set", f"budget.evaluations={evaluations}")
        resumed = call("submit", config, "--run", run, *less)
        assert "the run goes on: its last job has STOPPED" in resumed.out
        assert f"{evaluations} evaluations" in call("logs", "tiny", "--follow").out
        status = json.loads(call("status", "tiny", "--json").out)
        assert (status["job"]["state"], status["job"]["run"]) == ("SUCCEEDED", str(run))
        assert (status["state"], status["done"]) == ("done", evaluations)

        assert "there is no job nobody" in call("logs", "nobody", code=3).err
        monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
        assert "refuses this token" in call("logs", "tiny", code=3).err
        _secret_is_nowhere(run, head.temporary)
    assert sorted(told()) == list(range(evaluations)), "each candidate is told exactly once"


def test_a_dead_driver_and_a_dead_head_are_survived_by_submitting_again(
    tiny_models: TinyModels, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = tmp_path / "runs" / "tiny", tmp_path / "whole"
    config = tiny_models.write(
        tmp_path / "config.yaml",
        merge={"name": "linear", "normalize": False},
        algorithm={"name": "m2n2", "population_size": 6},
        tasks=[tiny_models.task("up", 0.1, pause=0.3), tiny_models.task("down", -0.1)],
        budget={"evaluations": 60},
        runtime={"executor": "ray", "workers": 2, "gpus_per_worker": 0, "threads": 1},
    )
    alone = ("--executor", "in-process", "--workers", "1")
    done = evomerge("search", config, "--run", whole, *alone, env={"TINY_PAUSES": "0"})
    assert done.returncode == 0, done.stderr

    def told() -> int:  # the last line may be torn
        path = run / "journal.jsonl"
        return path.read_bytes().count(b'"kind":"told"') if path.exists() else 0

    def submit(head: Head) -> str:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
            monkeypatch.setenv(name, head.environment[name])
        done = command(capsys, "submit", config, "--run", run, "--address", head.url)
        assert done.code == 0, done.err
        return done.out

    with ray_head(tmp_path) as head:
        submit(head)
        _wait_while(lambda: told() < 5)
        words = ["-m", "evomerge", "search"]
        (driver,) = [process for process in head.below() if process.cmdline()[1:4] == words]
        driver.kill()
        _wait_while(lambda: _is_alive(capsys, head))
        assert "its last job has FAILED" in submit(head)
        before = told()
        _wait_while(lambda: told() < before + 5)
        head.kill()
    assert told() < 60
    with ray_head(tmp_path) as head:
        submit(head)
        _wait_while(lambda: _is_alive(capsys, head))
    for name in ("journal.jsonl", "scores.f32", "front.json"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name


def _is_alive(capsys, head: Head) -> bool:
    told = command(capsys, "status", "tiny", "--json", "--address", head.url)
    return json.loads(told.out)["job"]["state"] in ("PENDING", "RUNNING")


def _secret_is_nowhere(*places: Path) -> None:
    for place in places:
        for folder, _, names in os.walk(place):
            for name in names:
                path = Path(folder, name)
                if path.is_file():
                    assert TOKEN.encode() not in path.read_bytes(), path
