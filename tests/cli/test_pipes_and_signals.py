"""What ends a search and what must not: closed pipes, Ctrl-C at any time, a closing terminal."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from evomerge.cli.main import app
from tests.e2e.tiny_run import evomerge, journal, start

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def n_told(run):
    return sum(e["kind"] == "told" for e in journal(run)) if (run / "journal.jsonl").exists() else 0


@pytest.fixture
def slow(tiny_models, tmp_path):
    """A config whose evaluations take a moment."""
    tasks = [tiny_models.task("up", 0.1, pause=0.05), tiny_models.task("down", -0.1)]
    return tiny_models.write(tmp_path / "c.yaml", tasks=tasks, budget={"evaluations": 150})


def begun(config, run, **changes):
    """Start a search and return it once the first results are told."""
    process = start("search", config, "--run", run, log=run.parent / "log", **changes)
    wait_for(lambda: n_told(run) >= 3)
    return process


def test_a_search_outlives_the_reader_of_its_log_and_of_its_result(tiny_models, tmp_path):
    tiny_models.write(tmp_path / "c.yaml", budget={"evaluations": 12})
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "evomerge", "search", tmp_path / "c.yaml", "--run", tmp_path / "r"],
        stdout=writing, stderr=writing, timeout=120, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, n_told(tmp_path / "r")) == (0, 12)


@pytest.mark.parametrize("verb", ["front", "status"])
def test_output_into_a_closed_pipe_ends_without_a_traceback(verb, place):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "evomerge", verb, "tiny"],
        stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120, check=False, cwd=place.folder,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_closing_terminal_drains_the_search(slow, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        process = begun(slow, tmp_path / "run")
    finally:
        signal.signal(signal.SIGHUP, before)
    os.kill(process.pid, signal.SIGHUP)
    os.kill(process.pid, signal.SIGHUP)
    assert process.wait(60) == 75
    assert "resume with:" in (tmp_path / "log").read_text()


def test_nohup_is_respected(slow, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited by the child
    try:
        process = begun(slow, tmp_path / "run")
    finally:
        signal.signal(signal.SIGHUP, before)
    try:
        os.kill(process.pid, signal.SIGHUP)
        now = n_told(tmp_path / "run")
        wait_for(lambda: n_told(tmp_path / "run") > now + 4)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_drain_does_not_cut_the_closing_short(number, slow, tmp_path):
    process = begun(slow, tmp_path / "run")
    os.kill(process.pid, signal.SIGINT)
    wait_for(lambda: "drained;" in (tmp_path / "run" / "events.log").read_text())
    deadline = time.monotonic() + 30
    while process.poll() is None:
        assert time.monotonic() < deadline
        os.kill(process.pid, number)
        time.sleep(0.01)
    assert process.returncode == 75


def test_ctrl_c_before_there_is_a_run_does_not_claim_one(place, evomerge, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    place.write()
    monkeypatch.setattr("evomerge.cli.search.open_or_create", stopped)
    done = evomerge("search", "c.yaml", "--run", "new")
    assert (done.code, done.messages) == (130, ["interrupted"])
    monkeypatch.setattr("evomerge.cli.export.export_command", stopped)
    done = evomerge("export", "tiny", "--out", "out")
    assert (done.code, done.messages) == (130, ["interrupted"])


def test_exit_codes_are_explained():
    assert "130 interrupted with no run to resume" in app.info.help


def test_resume_as_json_says_only_json(place):
    place.write()
    done = evomerge("resume", "tiny", "--evaluations", "8", "--json", cwd=place.folder)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip() and "Loading" not in line]
    first = json.loads(lines[0])
    assert first == {"resumed": "populations/tiny", "done": 6, "requeued": 0}
    assert all(isinstance(json.loads(line), dict) for line in lines)
    assert json.loads(done.stdout)["evaluations"] == 8
