"""Runs that grow, and trackers on them."""

import pytest

from evomerge.config.track_run import track
from evomerge.storage.run_store import RunFolder, RunStore
from tests.report.synthetic import Plan, append, write_run

PLAN = Plan(n=30)
TASKS = {"task0": 40, "task1": 40}


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run of 30 candidates, two of which failed."""
    return write_run(tmp_path / "digits", PLAN)


@pytest.fixture
def grow():
    """Append candidates to a run, as a resumed search does."""

    def append_to(folder: RunFolder, ids: range) -> None:
        store = RunStore(folder, header={}, tasks=TASKS)
        append(store, PLAN, ids)
        store.close()

    return append_to


@pytest.fixture
def send():
    """Send a run to a tracker; returns how many results were new."""
    return lambda folder, tracker: track(folder, tracker)[0]
