"""`submit`, `logs`, `stop` and `status --address` against a real Ray head with dashboard."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.cluster.ray_head import TOKEN, Head, ray_head
from tests.e2e.tiny_run import TinyModels, evomerge, journal

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(400)]


def _call(head: Head, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = evomerge(*arguments, "--address", head.url, env=head.environment)
    assert done.returncode == code, done.stdout + done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return done


def _state(head: Head) -> str:
    return json.loads(_call(head, "status", "tiny", "--json").stdout)["job"]["state"]


def _wait_until_ended(head: Head) -> str:
    until = time.monotonic() + 120
    while (state := _state(head)) in ("PENDING", "RUNNING"):
        assert time.monotonic() < until
        time.sleep(1)
    return state


def test_a_search_is_submitted_stopped_submitted_again_and_ends(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    evaluations, run = 400, tmp_path / "runs" / "tiny"  # longer than it is let run
    slow = tiny_models.task("up", 0.1, pause=0.6)
    config = tiny_models.write(
        tmp_path / "config.yaml",
        tasks=[slow, tiny_models.task("down", -0.1)],
        budget={"evaluations": evaluations},
        runtime={"executor": "ray", "workers": 2, "gpus_per_worker": 0, "threads": 1},
    )
    with ray_head(tmp_path) as head:
        submitted = _call(head, "submit", config, "--run", run, "--json")
        assert json.loads(submitted.stdout)["job"] == "tiny"

        # While it runs, whoever looks: the job, and then the lease.
        again = _call(head, "submit", config, "--run", run, code=3)
        assert "RunLockedError" in again.stderr
        other = _call(head, "submit", config, "--run", tmp_path / "other" / "tiny", code=3)
        assert f"that of another run, {run}" in other.stderr
        until = time.monotonic() + 120
        while not (run / "journal.jsonl").exists() or len(journal(run)) < 12:
            assert _state(head) in ("PENDING", "RUNNING"), _call(head, "logs", "tiny").stdout
            assert time.monotonic() < until
            time.sleep(0.5)
        driven = _call(head, "submit", config, "--run", run, code=3)
        assert "a driver is running this search already" in driven.stderr

        assert "draining" in _call(head, "stop", "tiny").stdout
        assert _wait_until_ended(head) == "STOPPED"
        told = [event["id"] for event in journal(run) if event["kind"] == "told"]
        assert 0 < len(told) < evaluations
        assert "draining" in _call(head, "logs", "tiny").stdout
        assert "had ended before" in _call(head, "stop", "tiny").stdout

        evaluations = len(told) + 6
        less = ("--set", f"budget.evaluations={evaluations}")
        resumed = _call(head, "submit", config, "--run", run, *less)
        assert "the run goes on: its last job has STOPPED" in resumed.stdout
        printed = _call(head, "logs", "tiny", "--follow").stdout
        assert f"{evaluations} evaluations" in printed
        status = json.loads(_call(head, "status", "tiny", "--json").stdout)
        assert (status["job"]["state"], status["job"]["run"]) == ("SUCCEEDED", str(run))
        assert (status["state"], status["done"]) == ("done", evaluations)

        assert "there is no job nobody" in _call(head, "logs", "nobody", code=3).stderr
        wrong = {**head.environment, "RAY_AUTH_TOKEN": "wrong", "RAY_AUTH_TOKEN_PATH": ""}
        refused = evomerge("logs", "tiny", "--address", head.url, env=wrong)
        assert (refused.returncode, "refuses this token" in refused.stderr) == (3, True)
        _secret_is_nowhere(run, head.temporary)
    told = [event["id"] for event in journal(run) if event["kind"] == "told"]
    assert sorted(told) == list(range(evaluations)), "each candidate is told exactly once"


def _secret_is_nowhere(*places: Path) -> None:
    for place in places:
        for folder, _, names in os.walk(place):
            for name in names:
                path = Path(folder, name)
                if path.is_file():
                    assert TOKEN.encode() not in path.read_bytes(), path
