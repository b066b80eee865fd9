"""A run folder from a stranger: its files are its own, and nothing leads out of it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge.errors import EvomergeError, JournalError, RunError
from evomerge.storage.journal import GENESIS, encode_line
from evomerge.storage.journal_events import MAX_FOUNDERS, check_events
from evomerge.storage.run_store import RunFolder, RunStore
from evomerge.storage.salvage import salvage

HEADER = {"kind": "header", "format": 1, "tasks": {"a": 2}}
ASKED = {"kind": "asked", "id": 0, "digest": "d", "origin": "o", "parents": [], "recipe": {}}
TOLD = {
    "kind": "told", "id": 0, "row": 0, "scores": "s", "weights": "w", "objectives": [0.5],
}  # fmt: skip


def lines(*events: object) -> bytes:
    chain, text = GENESIS, b""
    for event in events:
        chain, line = encode_line(chain, event)  # type: ignore[arg-type]
        text += line
    return text


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.create({"config.yaml": b"name: x\n", "sources.json": b"[]"})
    folder.journal.write_bytes(lines(HEADER))
    return folder


def open_store(folder: RunFolder) -> None:
    RunStore(folder, header=HEADER, tasks={"a": 2}).close()


@pytest.mark.parametrize("use", [open_store, RunFolder.require, salvage])
@pytest.mark.parametrize(
    "name",
    ["events.log", "scores.f32", "journal.jsonl", "journal.jsonl.cut", "front.json", "lock",
     "lease.json", "derived.npz", "warm_start.json", "surrogate.json", "manifest.json"],
)  # fmt: skip
@pytest.mark.parametrize("is_absolute", [True, False])
def test_a_linked_file_is_refused_and_what_it_leads_to_untouched(
    is_absolute: bool, name: str, use: Callable[[RunFolder], object], run: RunFolder, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"not yours\n")
    path = run.path / name
    path.unlink(missing_ok=True)
    path.symlink_to(outside if is_absolute else "../outside")
    before = os.stat(outside)
    with pytest.raises(RunError, match=f"{name}: is a link to"):
        use(run)
    assert outside.read_bytes() == b"not yours\n"
    assert os.stat(outside).st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("name", ["arrived", "exports"])
def test_a_linked_folder_is_refused(name: str, run: RunFolder, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    kept = outside / ".precious.tmp"  # a driver sweeps such names
    kept.touch()
    (run.path / name).rmdir()
    (run.path / name).symlink_to(outside)
    with pytest.raises(RunError, match=f"{name}: is a link to"):
        open_store(run)
    assert kept.exists()


def test_a_link_that_leads_nowhere_is_refused(run: RunFolder, tmp_path: Path) -> None:
    run.events.symlink_to(tmp_path / "made-by-us")
    with pytest.raises(RunError, match="is a link"):
        open_store(run)
    assert not (tmp_path / "made-by-us").exists()


def test_a_repaired_copy_takes_nothing_from_elsewhere(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "id_rsa").write_text("private")
    (run.path / "notes.txt").symlink_to(tmp_path / "id_rsa")
    (run.arrived / "00000007.json").symlink_to(tmp_path / "id_rsa")
    (run.path / "kept.txt").write_text("ours")
    files = salvage(run).files
    assert files["kept.txt"] == b"ours"
    assert not any(b"private" in data for data in files.values())


def test_a_run_folder_that_is_itself_a_link_is_the_users_choice(
    run: RunFolder, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(run.path)
    open_store(RunFolder(tmp_path / "link"))


def test_what_evomerge_writes_passes() -> None:
    partial = {**TOLD, "examples": 3}
    del partial["objectives"]
    failed = {"kind": "told", "id": 0, "error": "no"}
    check_events([HEADER, ASKED, TOLD, partial, failed, {"kind": "later"}], Path("j"))
    check_events([], Path("j"))


@pytest.mark.parametrize(
    "event",
    [
        7, [], {}, {"kind": None}, {**ASKED, "id": "0"}, {**ASKED, "id": True}, {**ASKED, "id": -1},
        {**ASKED, "id": 2**40}, {**ASKED, "parents": "12"}, {**ASKED, "parents": [None]},
        {**ASKED, "recipe": []}, {**ASKED, "examples": "9" * 30 + ":0123456789abcdef"},
        {**ASKED, "examples": 3}, {**ASKED, "origin": 5}, {**TOLD, "row": -1}, {**TOLD, "row": 1.5},
        {**TOLD, "objectives": [10**400]}, {**TOLD, "objectives": [math.inf]},
        {**TOLD, "objectives": [True]}, {**TOLD, "objectives": None}, {**TOLD, "measured": {}},
        {**TOLD, "scores": 5}, {"kind": "told", "id": 0, "error": ["x"]},
        {**HEADER, "founders": MAX_FOUNDERS + 1}, {**HEADER, "warm": -1}, {**HEADER, "tasks": {"a": 0}},
        {**HEADER, "tasks": {"a": "2"}}, {**HEADER, "config": []},
    ],
)  # fmt: skip
def test_what_evomerge_never_wrote_is_refused_with_its_line(event: object) -> None:
    with pytest.raises(JournalError, match=r"j: line 2: .*evomerge did not write"):
        check_events([HEADER, event], Path("j"))


def test_a_journal_must_begin_with_its_header() -> None:
    with pytest.raises(JournalError, match="line 1: the first event is no header"):
        check_events([ASKED], Path("j"))


@pytest.mark.parametrize("event", [{**ASKED, "id": "../../x"}, {**TOLD, "row": 2**62}])
def test_a_resume_stops_at_a_hostile_event_before_it_writes(
    event: dict[str, object], run: RunFolder
) -> None:
    data = lines(HEADER, event)
    run.journal.write_bytes(data)
    run.scores.write_bytes(b"12345678")
    with pytest.raises(EvomergeError):
        open_store(run)
    assert run.journal.read_bytes() == data
    assert run.scores.read_bytes() == b"12345678"
    assert not (run.path / "journal.jsonl.cut").exists()


def test_names_in_a_parked_result_are_never_paths(run: RunFolder) -> None:
    for name in ("00000000.json", "..json", "x.json"):
        (run.arrived / name).write_text(json.dumps({"body": {"recipe": "../.."}, "digest": "0"}))
    open_store(run)
    assert sorted(path.name for path in run.path.parent.iterdir()) == ["run"]
