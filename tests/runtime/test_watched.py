"""A changed source ends the search before a result made from it is taken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from evomerge.core.candidate import Candidate
from evomerge.errors import SourceError
from evomerge.runtime.watched import WatchedExecutor, WatchedFiles
from evomerge.search.ports import Outcome
from tests.search.fakes import ShuffledExecutor, score
from tests.search.test_loop import make_loop


def change_content(path: Path) -> None:
    path.write_bytes(b"other bytes")


def replace(path: Path) -> None:
    """The same size and times: only the inode tells."""
    status = path.stat()
    new = path.with_name("new")
    new.write_bytes(path.read_bytes()[::-1])
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.replace(path)


def write_in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"W")


@pytest.mark.parametrize("change", [change_content, replace, write_in_place, Path.unlink])
def test_a_change_stops_the_loop_and_drops_what_came_with_it(change, tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    source.write_bytes(b"weights")
    calls: list[int] = []

    def scorer(candidate: Candidate) -> Outcome:
        calls.append(candidate.id)
        if len(calls) == 8:
            change(source)
        return score(candidate)

    loop = make_loop(evaluations=20)
    executor = ShuffledExecutor(0, slots=1, scorer=scorer)
    with pytest.raises(SourceError, match=str(source)):
        loop.run(WatchedExecutor(executor, WatchedFiles([source])))
    assert len(calls) == 8
    assert loop.n_told == 7


def test_unchanged_files_are_no_trouble_and_a_missing_one_is_named(tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    source.write_bytes(b"weights")
    loop = make_loop(evaluations=20)
    executor = WatchedExecutor(ShuffledExecutor(0), WatchedFiles([source]))
    assert loop.run(executor) == "budget"
    with pytest.raises(SourceError, match="cannot be read any more"):
        WatchedFiles([tmp_path / "gone"])
