"""Trackers beside a search: they follow it, go on after a resume, and never stop or slow it."""

import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from evomerge.config import track_run
from evomerge.config.schema import load_config
from evomerge.config.session import Session, open_or_create, with_budget
from evomerge.config.track_run import followed, track
from evomerge.errors import RunError
from evomerge.storage.run_store import RunFolder
from evomerge.trackers.optuna_tracker import OptunaTracker
from evomerge.trackers.sole_sender import sole_sender
from evomerge.trackers.tracker import Ending, RunFacts, Sent, Step, tracker, trackers


@dataclass(eq=False)
class Memory:
    """Keeps what it is sent, as a server would: across sessions."""

    kept: ClassVar[dict[str, list[Step]]] = {}
    endings: ClassVar[list[Ending]] = []
    began: ClassVar[list[RunFacts]] = []

    key: str = "memory"
    fails: str = ""
    hangs: bool = False
    _steps: list[Step] = field(default_factory=list, init=False)

    def check(self) -> None:
        """Anywhere."""

    def start(self, run: RunFacts) -> Sent:
        if self.fails == "start":
            raise OSError("no route to sesame-123\nsecond line")
        self.began.append(run)
        self._steps = self.kept.setdefault(self.key, [])
        return Sent(len(self._steps), self._steps[-1].mark) if self._steps else Sent()

    def log(self, steps: Any) -> None:
        if self.fails == "log" and len(self._steps) + len(steps) > 3:
            raise SystemExit("a library that exits")
        if self.hangs:
            threading.Event().wait()
        self._steps.extend(steps)

    def finish(self, ending: Ending) -> None:
        self.endings.append(ending)

    def close(self) -> None:
        if self.fails == "close":
            raise TimeoutError("the last upload of sesame-123 took too long")

    def where(self) -> str:
        return "memory"


@pytest.fixture
def memory():
    tracker("memory")(Memory)
    Memory.kept.clear(), Memory.endings.clear(), Memory.began.clear()
    yield Memory
    del trackers._classes["memory"]


@pytest.fixture
def search(tiny_models, tmp_path, memory):
    """Search, or go on, with some trackers; returns folder and warnings."""
    warnings: list[str] = []

    def run(bodies, evaluations=12):
        tiny_models.write(tmp_path / "c.yaml", trackers=bodies, budget={"evaluations": 12})
        folder = RunFolder(tmp_path / "run")
        config, _ = open_or_create(load_config(tmp_path / "c.yaml"), tmp_path, folder)
        config = with_budget(config, evaluations)
        with Session(folder, config=config, on_warning=warnings.append) as session:
            session.run()
        return folder, warnings

    return run


def test_a_search_is_followed_to_its_end_and_resumed_without_repeats(search, memory):
    folder, warnings = search([{"name": "memory"}])
    steps = memory.kept["memory"]
    assert [step.number for step in steps] == list(range(1, 13))
    assert steps[-1].metrics["search/examples"] == 12 * 24
    assert all(step.seconds > 0 for step in steps)
    assert memory.endings[-1].is_done
    assert memory.endings[-1].front
    search([{"name": "memory"}], evaluations=15)
    assert [step.number for step in steps] == list(range(1, 16))
    assert len({facts.identity for facts in memory.began}) == 1
    assert warnings == []
    assert track(folder, Memory()) == (0, 15)


@pytest.mark.parametrize("fails", ["start", "log"])
def test_a_tracker_that_fails_is_named_once_and_the_search_goes_on(
    fails, search, memory, monkeypatch
):
    monkeypatch.setenv("SOME_TOKEN", "sesame-123")
    folder, warnings = search([{"name": "memory", "fails": fails}, {"name": "memory", "key": "b"}])
    assert len(memory.kept["b"]) == 12
    assert len(warnings) == 1
    assert warnings[0].startswith("tracker 'memory' stopped, the search goes on: ")
    assert f"evomerge track {folder.path}" in warnings[0]
    assert folder.events.read_text().count("stopped, the search goes on") == 1
    assert "sesame" not in warnings[0] + folder.events.read_text()


def test_a_failure_of_the_last_upload_is_told_like_any_other(run, memory, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "sesame-123")
    with pytest.raises(RunError, match=r"'memory': TimeoutError: the last upload of \$SOME_TOKEN"):
        track(run, Memory(fails="close"))


def test_a_tracker_that_hangs_is_left_behind(search, memory, monkeypatch):
    monkeypatch.setattr(track_run, "FINISH_SECONDS", 0.3)
    started = time.monotonic()
    folder, warnings = search([{"name": "memory", "hangs": True}])
    assert len(warnings) == 1
    assert f"the rest: evomerge track {folder.path}" in warnings[0]
    assert time.monotonic() - started < 60
    assert track(folder, Memory(key="later")) == (12, 12)


def test_trackers_may_change_between_sessions(search, memory, tiny_models, tmp_path):
    folder, _ = search([])
    assert memory.kept == {}
    search([{"name": "memory"}], evaluations=14)
    assert len(memory.kept["memory"]) == 14
    assert "name: memory" in folder.config.read_text()


def test_another_history_is_not_continued(run, memory):
    track(run, Memory())
    stranger = memory.kept["memory"]
    del stranger[20:]
    stranger[-1], stranger[-2] = stranger[-2], stranger[-1]
    with pytest.raises(RunError, match="memory: holds the results of another run"):
        track(run, Memory())


def test_an_error_of_the_search_is_not_held_up(run, memory):
    bodies = [{"name": "memory", "hangs": True}]
    with pytest.raises(KeyboardInterrupt), followed(run, bodies, print):
        raise KeyboardInterrupt


def test_there_is_one_sender_at_a_time(run, memory):
    with sole_sender(run.path, Memory()):
        with pytest.raises(RunError, match="another process is sending digits there"):
            track(run, Memory())
        assert track(run, Memory(key="elsewhere")) == (30, 30)
    assert track(run, Memory()) == (30, 30)
    assert not (run.path / "trackers").exists(), "the lock leaves nothing behind"


def test_a_search_waits_until_another_process_has_sent(search, memory, monkeypatch):
    folder, _ = search([], evaluations=6)
    held = sole_sender(folder.path, Memory())
    held.__enter__()
    ended = threading.Timer(1.5, held.__exit__, (None, None, None))
    ended.start()
    _, warnings = search([{"name": "memory"}], evaluations=12)
    ended.join()
    assert warnings == []
    assert [step.number for step in memory.kept["memory"]] == list(range(1, 13))
    monkeypatch.setattr(track_run, "FINISH_SECONDS", 0.3)
    with sole_sender(folder.path, Memory()):
        _, warnings = search([{"name": "memory"}], evaluations=14)
    assert len(warnings) == 1
    assert f"the rest: evomerge track {folder.path}" in warnings[0]


def test_a_sender_that_was_killed_holds_nothing(run, memory):
    program = (
        "import os, sys; from pathlib import Path\n"
        "from evomerge.trackers.optuna_tracker import OptunaTracker\n"
        "from evomerge.trackers.sole_sender import sole_sender\n"
        "with sole_sender(Path(sys.argv[1]), OptunaTracker()):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, run.path], check=False)
    assert done.returncode == -9
    assert len(list((run.path / "trackers").iterdir())) == 1
    with sole_sender(run.path, OptunaTracker()):
        pass
    assert not (run.path / "trackers").exists()


def test_a_lock_that_is_a_link_is_not_followed(run, memory, tmp_path):
    (run.path / "trackers").symlink_to(tmp_path)
    with pytest.raises(RunError, match="is a link"):
        track(run, Memory())


def test_much_to_catch_up_with_goes_in_batches(run, memory, monkeypatch):
    monkeypatch.setattr(track_run, "BATCH", 7)
    sizes = []
    monkeypatch.setattr(Memory, "log", lambda self, steps: sizes.append(len(steps)))
    assert track(run, Memory()) == (30, 30)
    assert sizes == [7, 7, 7, 7, 2]
