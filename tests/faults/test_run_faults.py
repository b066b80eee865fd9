"""Faults of the machine under a real search: each stops with a reason or changes nothing.

Where a search stops, a resume after the cause is gone ends byte for byte like the search left alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.cli.command import assert_one_line, command
from tests.e2e.tiny_run import journal

COMPARED = ("journal.jsonl", "scores.f32", "front.json")
EVALUATIONS = 12

FAULTY = '''
"""A scorer that lets something happen at its nth call; the same scores with and without."""
import numpy as np

EVENTS = {}

def calls_for_trouble(subject, n):
    EVENTS["count"] = EVENTS.get("count", 0) + 1
    happen = EVENTS.pop(EVENTS["count"], None)
    if happen is not None:
        happen()
    weights = np.concatenate([p.detach().numpy().ravel() for p in subject.model.parameters()])
    return [float(np.clip(1 - abs(p.mean() * 20), 0, 1)) for p in np.array_split(weights, n)]
'''


@pytest.fixture(scope="module")
def home(tiny_models, tmp_path_factory):
    """Models of our own (they will be tampered with), the scorer, a config, the undisturbed run."""
    folder = tmp_path_factory.mktemp("faults")
    for name in ("base", "x", "y"):
        shutil.copytree(tiny_models.folder / name, folder / name)
    (folder / "faulty_scorer.py").write_text(FAULTY)
    task = {
        "name": "t",
        "evaluator": {
            "name": "python",
            "function": "faulty_scorer:calls_for_trouble",
            "path": str(folder),
            "n": 8,
            "arguments": {"n": 8},
            "auto_class": "AutoModelForImageClassification",
        },
    }
    tiny_models.write(
        folder / "c.yaml",
        base_model=str(folder / "base"),
        models=[{"name": name, "model": str(folder / name)} for name in ("x", "y")],
        merge={"name": "linear", "normalize": False},
        algorithm={"name": "m2n2", "population_size": 4},
        tasks=[task],
        budget={"evaluations": EVALUATIONS},
        runtime={"workers": 1, "threads": 1, "max_attempts": 2},
    )
    return folder


@pytest.fixture
def evomerge(capsys, whole):
    """Run the command line in this process, with events set for calls of the scorer."""
    scorer = sys.modules["faulty_scorer"]  # imported by the search that was left alone

    def run(*arguments, events=None):
        scorer.EVENTS.clear()
        scorer.EVENTS.update(events or {})
        return command(capsys, *arguments)

    return run


@pytest.fixture(scope="module")
def whole(home):
    """The three files of a search that was left alone."""
    from evomerge.config.schema import load_config
    from evomerge.config.session import Session, open_or_create
    from evomerge.storage.run_store import RunFolder

    folder = RunFolder(home / "whole")
    config, _ = open_or_create(load_config(home / "c.yaml"), home, folder)
    with Session(folder, config=config) as session:
        session.run()
    return {name: (folder.path / name).read_bytes() for name in COMPARED}


def told(run: Path) -> int:
    return sum(event["kind"] == "told" for event in journal(run))


def assert_ends_like(whole, run, evomerge):
    done = evomerge("resume", run)
    assert done.code == 0, done.err
    assert {name: (run / name).read_bytes() for name in COMPARED} == whole


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, which can be full or read-only."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs rights this process lacks")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_stops_with_a_reason_and_room_lets_it_go_on(home, whole, evomerge, small_disk):
    run = small_disk / "run"

    def fill():
        with (small_disk / "junk").open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1 << 8, 1):
                try:
                    while file.write(b"\0" * size):
                        pass
                except OSError:
                    continue

    done = evomerge("search", home / "c.yaml", "--run", run, events={6: fill})
    assert_one_line(done, 3, (str(run), "resume the run"))
    assert 5 <= told(run) < EVALUATIONS  # what is left of a page takes some more events
    (small_disk / "junk").unlink()
    assert_ends_like(whole, run, evomerge)


def test_a_read_only_run_folder_is_refused_and_untouched(home, whole, evomerge, small_disk):
    run = small_disk / "run"
    shutil.copytree(home / "whole", run)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = evomerge("resume", run, "--evaluations", "20")
    assert_one_line(done, 3, (str(run), "Read-only file system"))
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    new = evomerge("search", home / "c.yaml", "--run", small_disk / "new")
    assert_one_line(new, 3, (str(small_disk / "new"), "Read-only file system"))


@pytest.mark.parametrize("call", [6, EVALUATIONS])
def test_a_failing_fsync_stops_the_search(call, home, whole, evomerge, tmp_path, monkeypatch):
    real = os.fsync
    run = tmp_path / "run"

    def broken(file):  # by what is written: the fsync of the result before may come late
        if (run / "journal.jsonl").read_bytes().count(b'"kind":"told"') >= call:
            raise OSError(5, "Input/output error")
        real(file)

    def wait():  # until the result of the call before has met the failure
        for thread in threading.enumerate():
            if thread.name == "journal-fsync":
                thread.join(30)

    events = {1: lambda: monkeypatch.setattr(os, "fsync", broken), call + 1: wait}
    done = evomerge("search", home / "c.yaml", "--run", run, events=events)
    monkeypatch.setattr(os, "fsync", real)
    assert done.code == 3
    assert "fsync failed: [Errno 5] Input/output error" in done.messages[-1]
    assert "Traceback" not in done.err
    assert told(run) == call
    assert_ends_like(whole, run, evomerge)


@pytest.mark.parametrize("how", ["replaced", "written to", "removed"])
def test_a_source_that_changes_during_the_search_stops_it(how, home, whole, evomerge, tmp_path):
    weights = home / "x" / "model.safetensors"
    good = weights.read_bytes()
    other = (home / "y" / "model.safetensors").read_bytes()

    def change():
        if how == "removed":
            weights.unlink()
        elif how == "replaced":
            (home / "x" / "new").write_bytes(other)
            (home / "x" / "new").replace(weights)
        else:  # in place and without truncating, which would kill the reader
            with weights.open("r+b") as file:
                file.write(other)

    run = tmp_path / "run"
    try:
        done = evomerge("search", home / "c.yaml", "--run", run, events={6: change})
        says = "cannot be read any more" if how == "removed" else "was changed or replaced"
        assert_one_line(done, 3, (str(weights), says, "resume"), "SourceError")
        assert told(run) == 5, "the result that came after the change is not taken"
        if how != "removed":
            assert_one_line(evomerge("resume", run), 3, ("changed since the run began",))
            with pytest.raises(Exception, match="changed since the run began"):
                build_worker(run)
    finally:
        weights.unlink(missing_ok=True)
        weights.write_bytes(good)
    assert_ends_like(whole, run, evomerge)


def build_worker(run):
    """Build a worker as a process that joins the search later would."""
    from evomerge.config.workers import build_worker as build

    return build(run, "cpu", 1, "late")


@pytest.mark.parametrize("jump", [-40_000_000.0, 40_000_000.0])
def test_a_clock_that_jumps_changes_nothing(jump, home, whole, evomerge, tmp_path, monkeypatch):
    real, offset = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + offset[0])
    run = tmp_path / "run"

    def leap():
        offset[0] += jump

    arguments = ("search", home / "c.yaml", "--run", run, "--set", "budget.seconds=600")
    done = evomerge(*arguments, events={4: leap, 8: leap})
    assert done.code == 0, done.err
    for name in COMPARED[1:]:
        assert (run / name).read_bytes() == whole[name]
    assert told(run) == EVALUATIONS
    offset[0] = -jump  # the lease of the driver before now seems to come from another year
    assert evomerge("resume", run).code == 0


def test_a_real_lack_of_memory_is_tried_again_and_leaves_no_trace(home, whole, evomerge, tmp_path):
    import numpy as np

    def swallow():
        np.ones(1 << 52, dtype=np.uint8)  # 4 PiB: no machine has that

    run = tmp_path / "run"
    done = evomerge("search", home / "c.yaml", "--run", run, events={5: swallow})
    assert done.code == 0, done.err
    assert {name: (run / name).read_bytes() for name in COMPARED} == whole
    assert "attempt=2" in (run / "events.log").read_text()
