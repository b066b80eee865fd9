"""Snapshots say what the run's journal says, follow it, and outlive whatever happens to it."""

import json
import os
import shutil
import socket
import time

import pytest

from evomerge.config.results import RunResults
from evomerge.errors import RunError
from evomerge.storage.lease_probe import Holder
from evomerge.storage.run_store import RunFolder, RunStore
from evomerge.watch.discover import find_runs
from evomerge.watch.driver import Driver, find_driver
from evomerge.watch.snapshot import RunFollower
from tests.cli.command import tree
from tests.report.synthetic import HOSTILE, Plan, append, write_run

PLAN = Plan(n=30)


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run", PLAN)


def test_it_says_what_status_says_and_more(folder):
    before = tree(folder.path)
    found = RunFollower(folder).newest()
    body = json.loads(json.dumps(found.to_json()))
    status = RunResults(folder).status()
    assert {key: body[key] for key in status} == json.loads(json.dumps(status))
    assert (found.state, found.error, found.driver, found.eta_seconds) == ("done", "", None, None)
    assert [row["candidate"] for row in body["front_members"]] == [
        row["candidate"] for row in RunResults(folder).front_members()
    ]
    assert [worker["finished"] for worker in body["workers"]] == [10, 10, 10]
    assert [(f["reason"], f["candidates"]) for f in body["failures"]] == [
        ("no luck: crossover", [12, 25])
    ]
    assert body["log"][-1].endswith("candidate 29 scored worker=worker-2 attempt=1 seconds=6.000")
    assert tree(folder.path) == before, "nothing was written"


def test_it_follows_a_run_that_is_written_and_leaves_it_alone(folder):
    follower = RunFollower(folder)
    assert follower.newest().status["done"] == 30
    header = folder.header()
    store = RunStore(folder, header=header, tasks=header["tasks"])
    append(store, PLAN, range(30, 40))
    for _ in range(1000):
        found = follower.newest()
        if found.status["done"] == 40:
            break
        time.sleep(0.01)
    assert (found.state, found.status["done"], len(found.points.ids)) == ("running", 40, 37)
    assert found.driver.holder == Holder(socket.gethostname(), os.getpid())
    assert found.eta_seconds == 0.0, "the budget is 30"
    store.note("draining; 0 evaluations are running")
    assert follower.newest().state == "draining"
    store.close()
    for _ in range(1000):
        found = follower.newest()
        if found.state == "done":
            break
        time.sleep(0.01)
    assert found.driver is None


@pytest.mark.parametrize("harm", ["altered", "config", "header", "gone", "unreadable log"])
def test_harm_is_told_with_what_was_known_and_healing_is_noticed(harm, folder, tmp_path):
    follower = RunFollower(folder)
    assert follower.newest().error == ""
    kept = shutil.copytree(folder.path, tmp_path / "kept")
    if harm == "altered":
        folder.journal.write_bytes(folder.journal.read_bytes() + b'{"chain":"0","event":{}}\n')
    elif harm == "config":
        folder.config.write_bytes(b"\x00: [")
        folder.journal.write_bytes(folder.journal.read_bytes()[:-1])  # read anew
    elif harm == "header":
        folder.journal.write_text("not a journal\n")
    elif harm == "unreadable log":
        folder.events.unlink()
        folder.events.mkdir()
        (folder.events / "x").touch()
    else:
        shutil.rmtree(folder.path)
    found = next(filter(lambda s: s.error, (follower.newest() for _ in range(100_000))))
    assert found.state == "unreadable"
    assert str(folder.path) in found.error
    assert found.status["done"] == 30, "of the last look"
    json.dumps(found.to_json())
    shutil.rmtree(folder.path, ignore_errors=True)
    shutil.copytree(kept, folder.path)
    found = next(filter(lambda s: not s.error, (follower.newest() for _ in range(100_000))))
    assert (found.state, found.status["done"]) == ("done", 30)


def test_a_run_that_was_only_created_is_new(folder):
    for path in (folder.journal, folder.events, folder.scores):
        path.unlink()
    found = RunFollower(folder).newest()
    assert (found.state, found.error, found.status) == ("new", "", {})
    assert found.to_json()["front_members"] == []


def test_a_run_with_nothing_scored_has_no_front(tmp_path):
    folder = write_run(tmp_path / "run", Plan(n=1))
    folder.journal.write_bytes(folder.journal.read_bytes().splitlines(keepends=True)[0])
    folder.events.unlink()
    found = RunFollower(folder).newest()
    assert (found.state, found.status["best"], found.speed) == ("interrupted", {}, None)
    assert found.to_json()["front_members"] == []


def test_strange_names_stay_strings(tmp_path):
    found = RunFollower(write_run(tmp_path / "run", Plan(n=30, word=HOSTILE))).newest()
    assert HOSTILE in found.to_json()["failures"][0]["reason"]


def test_a_driver_elsewhere_or_gone_is_not_signalled(folder):
    mine = Holder(socket.gethostname(), os.getpid())
    assert find_driver(folder.path) is None
    with pytest.raises(RunError, match="does not drive it any more"):
        Driver(folder.path, mine).drain()
    header = folder.header()
    store = RunStore(folder, header=header, tasks=header["tasks"])
    try:
        assert find_driver(folder.path) == Driver(folder.path, mine)
        body = json.loads((folder.path / "lease.json").read_text())
        parent = Holder(socket.gethostname(), os.getppid())  # runs, but does not hold the lock
        (folder.path / "lease.json").write_text(json.dumps(body | {"pid": parent.pid}))
        with pytest.raises(RunError, match="does not drive it any more"):
            Driver(folder.path, parent).stop(is_draining=False)
        there = Holder("node-4", os.getpid())
        (folder.path / "lease.json").write_text(json.dumps(body | {"host": "node-4"}))
        assert find_driver(folder.path) == Driver(folder.path, there)
        with pytest.raises(RunError, match=r"process .* on node-4 drives it; stop it there"):
            Driver(folder.path, there).drain()
        for text in ("", "[]", '{"host": 3, "pid": 4}', '{"host": "a", "pid": -1}'):
            (folder.path / "lease.json").write_text(text)
            assert find_driver(folder.path) is None
    finally:
        store.close()


def test_runs_are_found_by_path_by_name_and_in_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="no folder populations/ here"):
        find_runs([])
    for name in ("b", "a"):
        write_run(tmp_path / "populations" / name, Plan(n=3))
    (tmp_path / "populations" / "models").mkdir()
    (tmp_path / "populations" / "a.txt").touch()
    names = lambda places: [folder.path.name for folder in find_runs(places)]  # noqa: E731
    assert names([]) == ["a", "b"]
    assert names([RunFolder(tmp_path / "populations").path]) == ["a", "b"]
    assert names([tmp_path / "populations" / "b", RunFolder(tmp_path).path / "populations"]) == [
        "b",
        "a",
    ]
    monkeypatch.setattr("evomerge.watch.discover.POPULATIONS", tmp_path / "populations")
    assert [f.path.name for f in find_runs([tmp_path / "populations" / "a"])] == ["a"]
    with pytest.raises(RunError, match="there are no runs in this folder"):
        find_runs([tmp_path / "populations" / "models"])
    from pathlib import Path

    assert names([Path("b")]) == ["b"]
    with pytest.raises(RunError, match="Did you mean 'a'"):
        find_runs([Path("populations/aa")])
