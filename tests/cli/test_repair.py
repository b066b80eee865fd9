"""`evomerge repair`: a copy that resumes to where the undamaged run ended; the run is not touched."""

from __future__ import annotations

import json

import pytest

from evomerge.storage.lease import Lease
from tests.cli.command import assert_one_line, tree

COMPARED = ("journal.jsonl", "scores.f32", "front.json")


def flip(path, line, old=None, new=None):
    """Damage one line: replace `old` in it, or make it unreadable."""
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line - 1] = (
        lines[line - 1].replace(old, new, 1) if old else b"?" * 9 + lines[line - 1][9:]
    )
    path.write_bytes(b"".join(lines))


def line_of(run, kind, id_):
    lines = (run / "journal.jsonl").read_bytes().splitlines()
    wanted = (f'"kind":"{kind}"'.encode(), f'"id":{id_},'.encode())
    return next(n for n, line in enumerate(lines, start=1) if all(part in line for part in wanted))


def scored_again(run):
    return sum(" scored worker=" in line for line in (run / "events.log").read_text().splitlines())


def damage_told(run):
    flip(run / "journal.jsonl", line_of(run, "told", 2), b'"weights":"', b'"weights":"0')


def damage_asked(run):
    flip(run / "journal.jsonl", line_of(run, "asked", 3))


def damage_scores(run):
    data = bytearray((run / "scores.f32").read_bytes())
    data[4 * 24 * 2] ^= 1  # of the third row
    (run / "scores.f32").write_bytes(data)


def tear(run):
    data = (run / "journal.jsonl").read_bytes()
    (run / "journal.jsonl").write_bytes(data[:-20])


@pytest.mark.parametrize(
    ("damage", "says", "again"),
    [
        (damage_told, "does not continue the hash chain", 1),
        (damage_asked, "is not a journal record", None),
        (damage_scores, "row 2 is missing or was altered", 1),
        (tear, "is not a journal record", 1),
    ],
)
def test_a_repaired_copy_ends_like_the_undamaged_run(damage, says, again, place, evomerge):
    whole = {name: (place.run / name).read_bytes() for name in COMPARED}
    before = scored_again(place.run)
    damage(place.run)
    damaged = tree(place.run)
    done = evomerge("repair", "tiny", "--out", "saved", "--json")
    assert (done.code, done.messages) == (0, [])
    found = json.loads(done.out)
    assert says in found["damage"]
    assert found["kept"] + found["waiting"] + found["lost"] >= 5
    assert tree(place.run) == damaged, "a run is never repaired in place"
    done = evomerge("resume", "saved")
    assert done.code == 0, done.err
    assert {name: (place.folder / "saved" / name).read_bytes() for name in COMPARED} == whole
    repeated = scored_again(place.folder / "saved") - before
    assert repeated == again or (again is None and repeated <= 2)
    assert tree(place.run) == damaged


def test_a_damaged_run_says_how_to_repair_it(place, evomerge):
    damage_asked(place.run)
    line = line_of(place.run, "told", 3)
    assert line
    done = evomerge("resume", "tiny")
    assert_one_line(done, 3, ("is not a journal record", "evomerge repair ", "tiny --out NEW"))


def test_people_are_told_what_was_found(place, evomerge):
    done = evomerge("repair", "tiny", "--out", "saved")
    assert done.out.splitlines()[0] == "no damage was found"
    assert "6 results kept, 0 behind the damage" in done.out
    assert "evomerge resume saved" in done.out


def test_a_copy_needs_a_folder_of_its_own(place, evomerge):
    before = tree(place.folder)
    done = evomerge("repair", "tiny", "--out", "models")
    assert_one_line(done, 3, ("models: exists and is not an evomerge run",))
    assert tree(place.folder) == before


def test_a_running_search_is_not_repaired(place, evomerge):
    holder = Lease(place.run)
    try:
        done = evomerge("repair", "tiny", "--out", "saved")
        assert_one_line(done, 3, ("a search is running here; stop it first",), "RunLocked")
    finally:
        holder.release()
    assert not (place.folder / "saved").exists()


def test_a_run_without_a_header_is_refused(place, evomerge):
    flip(place.run / "journal.jsonl", 1)
    done = evomerge("repair", "tiny", "--out", "saved")
    assert_one_line(done, 3, ("line 1, the header, is missing or damaged", "search anew"))
