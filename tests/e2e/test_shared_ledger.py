"""Runs that share a ledger score nothing twice, and find what they would have found alone."""

from dataclasses import replace

import numpy as np
import pytest

from evomerge.config.schema import load_config
from evomerge.config.session import Session, create_run
from evomerge.config.workers import build_worker
from evomerge.search.events import candidate_of
from evomerge.storage.run_store import RunFolder


@pytest.fixture
def search(tiny_models, tmp_path):
    """Return a function that searches and returns (journal, examples scored)."""

    def run(name, *, ledger=None, n=12, tasks=("up", "down"), **changes):
        (tmp_path / f"{name}-marks").mkdir()
        targets = {"up": 0.1, "down": -0.1}
        config = tiny_models.write(
            tmp_path / f"{name}.yaml",
            name="same",
            tasks=[tiny_models.task(task, targets[task], n=n) for task in tasks],
            budget={"evaluations": 10},
            runtime={"workers": 1, "threads": 1} | ({"ledger": ledger} if ledger else {}),
            **changes,
        )
        folder = RunFolder(tmp_path / name)
        create_run(load_config(config), tmp_path, folder)
        with Session(folder) as session:
            session.run()
        recalled = [
            int(line.partition("recalled=")[2].split()[0])
            for line in folder.events.read_text().splitlines()
            if "recalled=" in line
        ]
        return folder.journal.read_bytes(), recalled

    return run


def test_a_second_run_scores_nothing_and_has_the_same_journal(search, tmp_path):
    alone, none = search("alone")
    first, new = search("first", ledger="shared")
    again, known = search("again", ledger="shared")
    assert (tmp_path / "shared" / "scores.sqlite").is_file()
    assert alone == first == again
    assert none == []
    assert new == [24], "two founders build the same model by different recipes"
    assert known == [24] * 10


def test_other_algorithms_share_the_founders(search):
    search("first", ledger="shared")
    _, known = search("other", ledger="shared", seed=6)
    assert 3 <= len(known) < 10
    assert set(known) == {24}


def test_another_task_is_scored_and_the_shared_one_is_not(search):
    search("first", ledger="shared", tasks=("up",))
    _, known = search("second", ledger="shared")
    assert sorted(known) == [12] * 9 + [24]


def test_other_settings_share_nothing(search):
    search("first", ledger="shared")
    _, known = search("other", ledger="shared", n=10)
    assert known == [20], "of the run's own"


def test_workers_in_other_processes_share_as_well(search, tmp_path):
    search("first", ledger="shared")
    worker = build_worker(tmp_path / "first", "cpu", 1, "elsewhere")
    events = RunFolder(tmp_path / "first").read_events()
    candidate = candidate_of(next(event for event in events if event["kind"] == "asked"), 5)
    outcome = worker.evaluate(candidate)
    assert outcome.detail == "recalled=24"
    part = worker.evaluate(replace(candidate, examples=np.array([0, 13, 20])))
    assert part.detail == "recalled=3"
    assert np.flatnonzero(~np.isnan(part.evaluation.flat_scores())).tolist() == [0, 13, 20]
