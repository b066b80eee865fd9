import json
import os
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from evomerge.core.candidate import Candidate, Evaluation, split_scores
from evomerge.core.recipe import Recipe
from evomerge.errors import JournalError, RunError, RunLockedError
from evomerge.storage import lease as lease_module
from evomerge.storage.run_store import RunFolder, RunStore, stored_evaluations

HEADER = {"kind": "header", "format": 1}
FILES = {"config.yaml": b"{}", "sources.json": b"[]"}
TASKS = {"b": 2, "a": 3}


def make(path):
    folder = RunFolder(path)
    folder.create(FILES)
    return folder


def candidate(number=0):
    return Candidate(number, Recipe("linear", ("x", "y"), {"weights": np.array([[0.25, number]])}))


def test_create_is_all_or_nothing_and_never_overwrites(tmp_path):
    folder = make(tmp_path / "run")
    assert folder.exists()
    with pytest.raises(RunError, match="exists and is not an evomerge run"):
        folder.create(FILES)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(RunError):
        RunFolder(tmp_path / "mine").create(FILES)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep me"


def test_a_crash_while_creating_leaves_no_run(tmp_path):
    (tmp_path / ".run.creating-1").mkdir()
    (tmp_path / ".run.creating-1" / "config.yaml").write_bytes(b"half")
    assert not RunFolder(tmp_path / "run").exists()
    assert make(tmp_path / "run").config.read_bytes() == b"{}"


def test_scores_and_events_come_back(tmp_path):
    folder = make(tmp_path / "run")
    store = RunStore(folder, header=HEADER, tasks=TASKS)
    row, digest = store.append_scores(np.array([1, 0, 1, 0.5, 0.25], np.float32))
    store.append(
        {"kind": "told", "id": 0, "row": row, "scores": digest, "weights": "w", "objectives": [1.0]}
    )
    store.append({"kind": "told", "id": 1, "error": "no"})
    store.close()
    again = RunStore(folder, header=HEADER, tasks=TASKS)
    events = list(stored_evaluations(again.journal.events[1:], again.scores, TASKS))
    assert events[0][1].scores["a"].tolist() == [1, 0, 1]
    assert events[0][1].scores["b"].tolist() == [0.5, 0.25]
    assert events[1][1].error == "no"
    again.close()


def test_score_rows_without_an_event_are_cut_off(tmp_path):
    folder = make(tmp_path / "run")
    store = RunStore(folder, header=HEADER, tasks=TASKS)
    store.append_scores(np.ones(5, np.float32))
    store.close()
    assert folder.scores.stat().st_size == 20
    RunStore(folder, header=HEADER, tasks=TASKS).close()
    assert folder.scores.stat().st_size == 0


def test_missing_or_altered_scores_are_an_error(tmp_path):
    folder = make(tmp_path / "run")
    store = RunStore(folder, header=HEADER, tasks=TASKS)
    row, digest = store.append_scores(np.ones(5, np.float32))
    store.append(
        {"kind": "told", "id": 0, "row": row, "scores": digest, "weights": "w", "objectives": [1.0]}
    )
    store.close()
    data = folder.scores.read_bytes()
    folder.scores.write_bytes(data[:10])
    with pytest.raises(JournalError, match="the scores of 1 results are missing"):
        RunStore(folder, header=HEADER, tasks=TASKS)
    folder.scores.write_bytes(b"\1" + data[1:])
    store = RunStore(folder, header=HEADER, tasks=TASKS)
    with pytest.raises(JournalError, match="row 0 is missing or was altered"):
        list(stored_evaluations(store.journal.events[1:], store.scores, TASKS))
    store.close()


def test_a_parked_result_comes_back_once_and_only_for_its_recipe(tmp_path):
    folder = make(tmp_path / "run")
    store = RunStore(folder, header=HEADER, tasks=TASKS)
    scores = {"a": np.array([1, 0, 1], np.float32), "b": np.zeros(2, np.float32)}
    store.park(Evaluation(candidate(4), scores, None, "w"))
    store.close()
    store = RunStore(folder, header=HEADER, tasks=TASKS)
    assert store.parked(candidate(5)) is None
    assert store.parked(Candidate(4, candidate(9).recipe)) is None
    back = store.parked(candidate(4))
    assert back.scores["a"].tolist() == [1, 0, 1]
    assert back.weights_digest == "w"
    path = next(folder.arrived.iterdir())
    path.write_bytes(path.read_bytes().replace(b'"w"', b'"v"'))
    assert store.parked(candidate(4)) is None, "an altered result is scored again"
    store.unpark(4)
    assert not list(folder.arrived.iterdir())
    store.close()


def test_split_scores_goes_by_task_name():
    parts = split_scores(np.arange(5, dtype=np.float32), TASKS)
    assert parts["a"].tolist() == [0, 1, 2]
    assert parts["b"].tolist() == [3, 4]


def test_a_second_driver_is_refused_by_name(tmp_path):
    folder = make(tmp_path / "run")
    store = RunStore(folder, header=HEADER, tasks=TASKS)
    with pytest.raises(RunLockedError, match=f"process {os.getpid()} on"):
        RunStore(folder, header=HEADER, tasks=TASKS)
    store.close()
    RunStore(folder, header=HEADER, tasks=TASKS).close()


def test_the_lock_dies_with_its_holder(tmp_path):
    folder = make(tmp_path / "run")
    code = """
        import sys, time
        from pathlib import Path
        from evomerge.storage.run_store import RunFolder, RunStore
        RunStore(RunFolder(Path(sys.argv[1])), header={"kind": "header", "format": 1}, tasks={"a": 3, "b": 2})
        print("open", flush=True)
        time.sleep(60)
    """
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(folder.path)], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(RunLockedError, match=f"process {holder.pid} on"):
            RunStore(folder, header=HEADER, tasks=TASKS)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    RunStore(folder, header=HEADER, tasks=TASKS).close()


def test_a_driver_on_another_host_is_refused_until_its_lease_is_old(tmp_path):
    folder = make(tmp_path / "run")
    lease = folder.path / "lease.json"
    lease.write_text(json.dumps({"epoch": 7, "host": "elsewhere", "pid": 1}))
    with pytest.raises(RunLockedError, match="process 1 on elsewhere"):
        RunStore(folder, header=HEADER, tasks=TASKS)
    old = time.time() - lease_module.LEASE_SECONDS - 1
    os.utime(lease, (old, old))
    store = RunStore(folder, header=HEADER, tasks=TASKS)
    assert store.lease.epoch == 8
    store.close()


def test_a_zombie_driver_cannot_write_after_a_takeover(tmp_path):
    folder = make(tmp_path / "run")
    store = RunStore(folder, header=HEADER, tasks=TASKS)
    taken = json.loads((folder.path / "lease.json").read_text()) | {
        "epoch": 99,
        "host": "elsewhere",
    }
    (folder.path / "lease.json").write_text(json.dumps(taken))
    before = folder.journal.read_bytes()
    with pytest.raises(RunLockedError, match="taken this run over"):
        store.append({"kind": "asked"})
    assert folder.journal.read_bytes() == before
    store.close()


def _with_results(folder, count):
    store = RunStore(folder, header=HEADER, tasks=TASKS)
    for number in range(count):
        row, digest = store.append_scores(np.full(5, number, np.float32))
        store.append(
            {
                "kind": "told",
                "id": number,
                "row": row,
                "scores": digest,
                "weights": "w",
                "objectives": [1.0],
            }
        )
    store.close()


def test_a_power_cut_that_kept_events_but_not_their_scores_is_healed(tmp_path):
    folder = make(tmp_path / "run")
    _with_results(folder, 5)
    whole = folder.journal.read_bytes()
    folder.scores.write_bytes(folder.scores.read_bytes()[: 3 * 20 + 7])
    store = RunStore(folder, header=HEADER, tasks=TASKS)
    assert [event["id"] for event in store.journal.events[1:]] == [0, 1, 2]
    assert folder.scores.stat().st_size == 60
    cut = (folder.path / "journal.jsonl.cut").read_bytes()
    assert folder.journal.read_bytes() + cut == whole
    store.close()
    _with_results_again = RunStore(folder, header=HEADER, tasks=TASKS)
    assert len(_with_results_again.journal.events) == 4
    _with_results_again.close()


def test_lost_scores_of_a_whole_run_are_not_cut_away(tmp_path):
    folder = make(tmp_path / "run")
    _with_results(folder, 5)
    before = folder.journal.read_bytes()
    folder.scores.unlink()
    with pytest.raises(JournalError, match="the scores of 5 results are missing"):
        RunStore(folder, header=HEADER, tasks=TASKS)
    assert folder.journal.read_bytes() == before


@pytest.mark.parametrize("left", [None, 0])
def test_a_run_whose_journal_is_gone_is_not_begun_anew(tmp_path, left):
    folder = make(tmp_path / "run")
    _with_results(folder, 3)
    if left is None:
        folder.journal.unlink()
    else:
        folder.journal.write_bytes(b"")
    before = folder.scores.read_bytes()
    with pytest.raises(JournalError, match="is missing or empty"):
        RunStore(folder, header=HEADER, tasks=TASKS)
    assert folder.scores.read_bytes() == before


def test_a_zombie_driver_writes_nothing_at_all(tmp_path):
    folder = make(tmp_path / "run")
    store = RunStore(folder, header=HEADER, tasks=TASKS)
    (folder.path / "lease.json").write_text(
        json.dumps({"epoch": 99, "host": "elsewhere", "pid": 1})
    )
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    scores = {"a": np.zeros(3, np.float32), "b": np.zeros(2, np.float32)}
    for write in (
        lambda: store.append_scores(np.zeros(5, np.float32)),
        lambda: store.park(Evaluation(candidate(1), scores)),
        lambda: store.unpark(1),
        lambda: store.publish(list, force=True),
    ):
        with pytest.raises(RunLockedError, match="taken this run over"):
            write()
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before
    store.close()


@pytest.mark.parametrize("body", ["null", "[]", '{"epoch": "abc"}', "garbage"])
def test_a_garbled_lease_file_does_not_stop_a_run(tmp_path, body):
    folder = make(tmp_path / "run")
    (folder.path / "lease.json").write_text(body)
    RunStore(folder, header=HEADER, tasks=TASKS).close()


def test_temporary_files_of_a_killed_driver_are_swept(tmp_path):
    folder = make(tmp_path / "run")
    for place in (folder.path / ".front.json.7.tmp", folder.arrived / ".00000003.json.7.tmp"):
        place.write_bytes(b"half")
    RunStore(folder, header=HEADER, tasks=TASKS).close()
    assert not list(folder.path.rglob("*.tmp"))
