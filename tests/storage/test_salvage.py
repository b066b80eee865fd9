"""What `salvage` saves of damaged runs; nothing it returns may be wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.core.ancestry import ancestor_name
from evomerge.core.candidate import Candidate, Evaluation
from evomerge.core.recipe import Recipe
from evomerge.errors import RunError
from evomerge.search.events import asked_event, told_event
from evomerge.storage.journal import read_journal
from evomerge.storage.run_store import RunFolder, RunStore
from evomerge.storage.salvage import salvage

TASKS = {"b": 2, "a": 3}
HEADER = {"kind": "header", "format": 1, "tasks": TASKS}
RESULTS = 6
FAILED = 4  # this one has no scores


def candidate(number: int) -> Candidate:
    weights = {"weights": np.array([[0.25, number]])}
    return Candidate(number, Recipe("linear", ("x", "y"), weights))


def scores(number: int) -> dict[str, np.ndarray]:
    return {"a": np.full(3, number, np.float32), "b": np.full(2, -number, np.float32)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of six candidates, one of which failed; a seventh is parked."""
    folder = RunFolder(tmp_path_factory.mktemp("run") / "whole")
    folder.create({"config.yaml": b"name: x\n", "sources.json": b"[]", "derived.npz": b"npz"})
    store = RunStore(folder, header=HEADER, tasks=TASKS)
    for number in range(RESULTS):
        store.append(asked_event(candidate(number)))
    for number in range(RESULTS):
        if number == FAILED:
            store.append(told_event(Evaluation(candidate(number), error="no"), None, -1, ""))
            continue
        done = Evaluation(candidate(number), scores(number), None, "w")
        row, digest = store.append_scores(done.flat_scores())
        store.append(told_event(done, [1.0], row, digest))
    store.park(Evaluation(candidate(6), scores(6), None, "w"))
    store.close()
    return folder


@pytest.fixture
def damaged(whole, tmp_path):
    """Return a function that copies the run with another journal or other scores."""

    def copy(name: str = "copy", **changes: bytes) -> RunFolder:
        folder = RunFolder(tmp_path / name)
        files = {path.name: path.read_bytes() for path in whole.path.iterdir() if path.is_file()}
        files |= {f"arrived/{p.name}": p.read_bytes() for p in whole.arrived.iterdir()}
        for old in (whole.journal.name, whole.scores.name):
            files[old] = changes.get(old.partition(".")[0], files[old])
        folder.create(files)
        return folder

    return copy


def parked_in(files) -> dict[int, dict]:
    found = {}
    for name, data in files.items():
        if name.startswith("arrived/"):
            found[int(name[8:-5])] = json.loads(data)["body"]
    return found


def told_in(files, path) -> list[int]:
    path.write_bytes(files["journal.jsonl"])
    return [event["id"] for event in read_journal(path)[0] if event["kind"] == "told"]


def test_a_whole_run_is_copied_as_it_is(whole):
    found = salvage(whole)
    assert (found.damage, found.kept, found.waiting, found.lost) == ("", RESULTS, 0, 0)
    for name in ("journal.jsonl", "scores.f32", "config.yaml", "derived.npz"):
        assert found.files[name] == (whole.path / name).read_bytes()
    assert not {"lock", "lease.json", "front.json"} & set(found.files)
    assert set(parked_in(found.files)) == {6}


def test_a_damaged_told_line_costs_that_result_and_the_one_nobody_vouches_for(whole, damaged):
    lines = whole.journal.read_bytes().splitlines(keepends=True)
    lines[8] = lines[8].replace(b'"objectives"', b'"objectivez"')  # of candidate 1
    found = salvage(damaged(journal=b"".join(lines)))
    assert "line 9 does not continue the hash chain" in found.damage
    assert found.kept == 1
    # The line after it follows from what line 9 says its link is; the failure is tried again.
    assert set(parked_in(found.files)) == {2, 3, 5, 6}
    assert (found.waiting, found.lost) == (3, 2)


def test_an_unreadable_line_hides_the_next_one_too(whole, damaged):
    lines = whole.journal.read_bytes().splitlines(keepends=True)
    lines[8] = b"\0" * len(lines[8])
    found = salvage(damaged(journal=b"".join(lines[:8]) + lines[8] + b"\n" + b"".join(lines[9:])))
    assert "line 9 is not a journal record" in found.damage
    assert set(parked_in(found.files)) == {3, 5, 6}


def test_altered_scores_cost_their_result(whole, damaged, tmp_path):
    rows = bytearray(whole.scores.read_bytes())
    rows[2 * 20 + 3] ^= 1
    found = salvage(damaged(scores=bytes(rows)))
    assert "row 2 is missing or was altered" in found.damage
    assert told_in(found.files, tmp_path / "j") == [0, 1]
    assert found.files["scores.f32"] == whole.scores.read_bytes()[:40]
    assert set(parked_in(found.files)) == {3, 5, 6}


def test_without_a_header_nothing_is_guessed(whole, damaged):
    lines = whole.journal.read_bytes().splitlines(keepends=True)
    with pytest.raises(RunError, match="line 1, the header, is missing or damaged"):
        salvage(damaged(journal=b"".join(lines[1:])))


def test_results_outlive_the_line_of_an_ancestor(tmp_path):
    """A recipe's digest holds its ancestors': it is proposed again as it was, or not at all."""
    lines = [candidate(0)]
    for number in (1, 2):
        name = ancestor_name(lines[-1].recipe.digest())
        ancestors = {name: lines[-1].recipe}
        row = {"weights": np.ones((1, 2))}
        recipe = Recipe("linear", ("x", name), row, ancestors=ancestors)
        lines.append(Candidate(number, recipe))
    folder = RunFolder(tmp_path / "run")
    folder.create({"config.yaml": b"name: x\n", "sources.json": b"[]"})
    store = RunStore(folder, header=HEADER, tasks=TASKS)
    held: set[str] = set()
    for item in lines:
        store.append(asked_event(item, held=held))
        held.update(item.recipe.lineage(held))
        done = Evaluation(item, scores(item.id), None, "w")
        row, digest = store.append_scores(done.flat_scores())
        store.append(told_event(done, [1.0], row, digest))
    store.close()
    journal = folder.journal.read_bytes().splitlines(keepends=True)
    assert b'"ancestors"' not in b"".join(journal)
    journal[3] = journal[3].replace(b'"asked"', b'"asket"')  # of candidate 1
    folder.journal.write_bytes(b"".join(journal))
    found = salvage(folder)
    assert (found.kept, found.waiting, found.lost) == (1, 1, 1)
    assert parked_in(found.files)[2]["recipe"] == lines[2].recipe.digest()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_whatever_is_flipped_what_is_saved_is_right(whole, tmp_path_factory, data):
    target = data.draw(st.sampled_from(["journal.jsonl", "scores.f32"]))
    body = bytearray((whole.path / target).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    files = {path.name: path.read_bytes() for path in whole.path.iterdir() if path.is_file()}
    folder = RunFolder(tmp_path_factory.mktemp("damaged") / "run")
    folder.create(files | {target: bytes(body)})
    header = whole.journal.read_bytes().splitlines(keepends=True)[0]
    if not folder.journal.read_bytes().startswith(header):
        with pytest.raises(RunError, match="line 1, the header"):
            salvage(folder)
        return
    found = salvage(folder)
    assert whole.journal.read_bytes().startswith(found.files["journal.jsonl"])
    assert whole.scores.read_bytes().startswith(found.files["scores.f32"])
    told = told_in(found.files, folder.path / "check")
    assert told == list(range(found.kept))
    again = RunFolder(folder.path.parent / "again")
    again.create(found.files)
    store = RunStore(again, header=HEADER, tasks=TASKS)
    for number in parked_in(found.files):
        back = store.parked(candidate(number))
        assert back is not None
        assert back.weights_digest == "w"
        for task, values in scores(number).items():
            np.testing.assert_array_equal(back.scores[task], values)
    store.close()
