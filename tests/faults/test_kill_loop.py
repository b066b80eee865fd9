"""kill -9 at random moments: nothing finished is lost, and the journal ends as if undisturbed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.tiny_run import evomerge, journal, start

KILLS = 30
UNDISTURBED = {"TINY_PAUSES": "0"}  # the same journal, sooner


def _config(tiny_models, path, evaluations, pause):
    """Two tasks whose scoring is counted, M2N2 so that every result shapes what follows."""
    marks = path.parent / "marks"
    marks.mkdir()
    slow = tiny_models.task("up", 0.1, pause=pause)
    counted = tiny_models.task("down", -0.1)
    counted["evaluator"] |= {
        "function": "tiny_scorer:marked",
        "arguments": {"n": 12, "folder": str(marks)},
    }
    tiny_models.write(
        path,
        merge={"name": "linear", "normalize": False},
        algorithm={"name": "m2n2", "population_size": 6},
        tasks=[slow, counted],
        budget={"evaluations": evaluations},
        search={"look_ahead": 6},
    )
    return marks


def _check(run, whole, evaluations):
    told = [event["id"] for event in journal(run) if event["kind"] == "told"]
    assert sorted(told) == list(range(evaluations)), "each candidate is told exactly once"
    for name in ("journal.jsonl", "scores.f32", "front.json"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert not list((run / "arrived").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_thirty_random_kills_of_the_driver_in_process(tiny_models, tmp_path):
    evaluations = 300
    config = tmp_path / "c.yaml"
    marks = _config(tiny_models, config, evaluations, 0.0)
    whole = tmp_path / "whole"
    assert evomerge("search", config, "--run", whole, env=UNDISTURBED).returncode == 0
    before = len(list(marks.iterdir()))
    rng = random.Random(0)
    run, kills, landed = tmp_path / "run", 0, 0
    while kills < KILLS:
        process = start("search", config, "--run", run, log=tmp_path / "log")
        told = _told(run)
        # Half the kills land while the search runs, half anywhere from start-up on.
        if rng.random() < 0.5:
            _wait_for_results(process, run, told + rng.randint(1, 5))
        else:
            time.sleep(rng.uniform(0.0, 4.0))
        if process.poll() is None:
            kills += 1
            landed += _told(run) > told
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        else:
            assert process.returncode == 0, (tmp_path / "log").read_text()[-2000:]
            break
    assert kills == KILLS, "the search must outlive the kills; raise `evaluations`"
    assert landed >= 5
    assert evomerge("resume", run).returncode == 0
    _check(run, whole, evaluations)
    extra = len(list(marks.iterdir())) - before - evaluations
    assert extra <= KILLS, f"{extra} evaluations were repeated after {KILLS} kills of one worker"


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(1200)
def test_kills_of_driver_and_actors_on_ray(tiny_models, tmp_path):
    evaluations = 60
    config = tmp_path / "c.yaml"
    marks = _config(tiny_models, config, evaluations, 0.15)
    whole = tmp_path / "whole"
    assert evomerge("search", config, "--run", whole, env=UNDISTURBED).returncode == 0
    before = len(list(marks.iterdir()))

    rng = random.Random(1)
    run, driver_kills, actor_kills = tmp_path / "run", 0, 0
    while driver_kills < 4 or actor_kills < 8:
        process = start(
            *("search", config, "--run", run),
            *("--executor", "ray", "--workers", "2"),
            log=tmp_path / "log",
        )
        told = _told(run)
        _wait_for_results(process, run, told + 1)
        for _ in range(2):
            actors = _actors(process)
            if actors and process.poll() is None:
                rng.choice(actors).kill()
                actor_kills += 1
            time.sleep(rng.uniform(0.2, 1.5))
        if process.poll() is None and driver_kills < 4:
            driver_kills += 1
            _kill_tree(process)
        else:
            assert process.wait(240) == 0, (tmp_path / "log").read_text()[-3000:]
            break
    assert driver_kills == 4
    assert actor_kills >= 5
    assert (
        evomerge("resume", run, "--executor", "ray", "--workers", "2", timeout=240).returncode == 0
    )
    _check(run, whole, evaluations)
    extra = len(list(marks.iterdir())) - before - evaluations
    assert extra <= 12 * driver_kills + actor_kills * 2


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_nodes_an_actor_and_the_driver_are_killed_and_nodes_join(tiny_models, tmp_path):
    evaluations = 190
    config = tmp_path / "c.yaml"
    _config(tiny_models, config, evaluations, 0.2)
    whole = tmp_path / "whole"
    assert evomerge("search", config, "--run", whole, env=UNDISTURBED).returncode == 0

    token = tmp_path / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    env = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    run, log = tmp_path / "run", tmp_path / "log"
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.cluster_host"],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **env},
    ) as host:
        address, one, raylet_one, two, raylet_two = host.stdout.readline().split()
        addresses = [address.split(":")[0], one, two]

        def add_a_node():
            host.stdin.write("add\n")
            host.stdin.flush()
            added, place, _ = host.stdout.readline().split()
            assert added == "added"
            addresses.append(place)

        where = ("--executor", "ray", "--address", address, "--workers", "2")
        process = start("search", config, "--run", run, *where, log=log, env=env)
        try:
            _wait_for_workers(process, run, 2)
            psutil.Process(int(raylet_one)).kill()
            _wait_for_results(process, run, _told(run) + 5)
            add_a_node()
            _scorers(int(raylet_two))[0].kill()
            _wait_for_workers(process, run, 4)
            psutil.Process(int(raylet_two)).kill()
            _wait_for_results(process, run, _told(run) + 5)
            add_a_node()
            _wait_for_results(process, run, _told(run) + 10)
            assert process.poll() is None, log.read_text()[-3000:]
            process.kill()
            process.wait()
            done = evomerge("resume", run, *where, timeout=240, env=env)
            assert done.returncode == 0, done.stderr
        finally:
            process.kill()
            process.wait()
            host.stdin.close()
            host.wait(60)
    assert len(set(addresses)) == 5, "the head and four nodes, each with an address of its own"
    _check(run, whole, evaluations)
    lost = [line for line in (run / "events.log").read_text().splitlines() if " lost on " in line]
    assert len(lost) >= 2, "raylets took running candidates with them"


def _told(run):
    """Count results without reading the journal as JSON: its last line may be torn just now."""
    path = run / "journal.jsonl"
    return path.read_bytes().count(b'"kind":"told"') if path.exists() else 0


def _wait_for_results(process, run, n, seconds=180):
    """Wait until the journal tells n results, or the process has ended."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and _told(run) < n:
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def _wait_for_workers(process, run, n):
    """Wait until so many processes have scored something, or the driver has ended."""
    deadline = time.monotonic() + 120
    while process.poll() is None and len(_workers(run)) < n:
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def _workers(run):
    log = run / "events.log"
    lines = log.read_text().splitlines() if log.exists() else []
    return {line.split("worker=")[1].split()[0] for line in lines if "worker=" in line}


def _actors(process):
    return _scorers(process.pid)


def _scorers(pid):
    """Return the living worker actors below a process."""
    found = []
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return found
    for child in children:
        try:
            if "ray::PlacedActor" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:  # gone, or a zombie
            continue
    return found


def _kill_tree(process):
    """kill -9 the driver alone, then whatever of its local cluster outlives it."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    time.sleep(0.2)
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(children, timeout=20)
