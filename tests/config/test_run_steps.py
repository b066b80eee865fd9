"""Steps of a journal agree with what `status` and `report` say of it."""

import json

import pytest

from evomerge.config.results import RunResults
from evomerge.config.run_steps import RATE_OVER, RunSteps
from evomerge.errors import JournalError, RunError
from evomerge.storage.run_store import RunFolder, RunStore
from tests.report.synthetic import Plan, append, write_run

TASKS = {"task0": 40, "task1": 40}


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return write_run(tmp_path / "run", Plan(n=40))


def test_the_last_step_says_what_status_says(run):
    *_, last = RunSteps(run).poll()
    status = RunResults(run).status()
    assert last.number == status["done"] == 40
    assert last.metrics["search/failed"] == status["failed"]
    assert last.metrics["search/front"] == status["front"]
    assert last.metrics["search/hypervolume"] == pytest.approx(status["hypervolume"])
    assert {k: last.metrics[f"best/{k}"] for k in ("maths", "chat")} == pytest.approx(
        {name: row["value"] for name, row in status["best"].items()}
    )


def test_a_growing_journal_gives_each_step_once(tmp_path):
    half = write_run(tmp_path / "half" / "run", Plan(n=20))
    half.config.write_text(half.config.read_text().replace("evaluations: 20", "evaluations: 40"))
    steps = RunSteps(half)
    first = list(steps.poll())
    assert len(first) == 20
    assert not steps.ending().is_done
    assert list(steps.poll()) == []
    store = RunStore(half, header={}, tasks=TASKS)
    append(store, Plan(n=40), range(20, 40))
    store.close()
    rest = list(steps.poll())
    assert [step.number for step in first + rest] == list(range(1, 41))
    assert steps.ending().is_done
    front = RunResults(half).front_members()
    assert [row["candidate"] for row in steps.ending().front] == [row["candidate"] for row in front]
    assert [step.metrics for step in RunSteps(half).poll()] == [
        step.metrics for step in first + rest
    ]


def test_steps_that_are_not_wanted_still_count(run):
    every = list(RunSteps(run).poll())
    late = list(RunSteps(run).poll(after=30))
    assert [step.number for step in late] == list(range(31, 41))
    assert [step.metrics for step in late] == [step.metrics for step in every[30:]]
    assert [step.mark for step in late] == [step.mark for step in every[30:]]


def test_the_identity_is_that_of_the_run(run, tmp_path):
    facts = RunSteps(run).facts()
    assert RunSteps(run).facts() == facts
    assert len(facts.identity) == 16
    run.path.rename(tmp_path / "elsewhere")
    moved = RunSteps(RunFolder(tmp_path / "elsewhere")).facts()
    assert moved.identity != facts.identity


def test_a_rate_is_one_of_this_session(run):
    lines = [f"2026-11-22T10:00:{i:02d}Z candidate {i} scored worker=w attempt=1 seconds=1.0\n"
             for i in range(20)]  # fmt: skip
    lines.append("2026-11-23T10:00:00Z machine x\n")
    lines += [f"2026-11-23T10:00:{2 * i - 38:02d}Z candidate {i} scored worker=w attempt=1 "
              "seconds=1.0\n" for i in range(20, 40)]  # fmt: skip
    run.events.write_text("".join(lines))
    steps = list(RunSteps(run).poll())
    assert steps[19].metrics["search/candidates_per_second"] == pytest.approx(19 / 19)
    assert steps[39].metrics["search/candidates_per_second"] == pytest.approx(20 / 40)
    assert RATE_OVER > 20


def test_damage_and_cuts_are_named(run):
    steps = RunSteps(run)
    list(steps.poll())
    lines = run.journal.read_bytes().splitlines(keepends=True)
    run.journal.write_bytes(b"".join(lines[:20]))
    with pytest.raises(RunError, match="was cut while it was followed"):
        list(steps.poll())
    steps = RunSteps(run)
    altered = json.loads(lines[20])
    altered["event"]["id"] = 7
    run.journal.write_bytes(b"".join(lines[:20]) + json.dumps(altered).encode() + b"\n")
    with pytest.raises(JournalError, match="does not continue the journal"):
        list(steps.poll())


def test_a_run_that_never_began_is_refused(run):
    run.journal.unlink()
    with pytest.raises(RunError, match="nothing was evaluated yet"):
        RunSteps(run)
