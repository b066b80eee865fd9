import os
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import JournalError
from evomerge.storage import journal as journal_module
from evomerge.storage.journal import GENESIS, JournalWriter, encode_line, read_journal

EVENTS = [
    {"kind": "header", "format": 1},
    {"kind": "asked", "id": 0, "x": 0.1},
    {"kind": "told", "id": 0},
]


def write(path, events=EVENTS):
    writer = JournalWriter(path)
    for event in events:
        writer.append(event)
    writer.close()
    return path.read_bytes()


def test_events_come_back_in_order(tmp_path):
    write(tmp_path / "j")
    events, chain, valid = read_journal(tmp_path / "j")
    assert events == EVENTS
    assert valid == (tmp_path / "j").stat().st_size
    assert chain != GENESIS


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_journal_cut_anywhere_reopens_at_its_last_whole_event(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("j") / "j"
    whole = write(path)
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    writer = JournalWriter(path)
    kept = len(writer.events)
    assert writer.events == EVENTS[:kept]
    assert writer.sealed == cut - len(
        b"".join(line for line in whole[:cut].splitlines(True) if line.endswith(b"\n"))
    )
    for event in EVENTS[kept:]:
        writer.append(event)
    writer.close()
    assert path.read_bytes() == whole


def test_garbage_after_a_power_cut_is_sealed(tmp_path):
    path = tmp_path / "j"
    whole = write(path)
    path.write_bytes(whole + b"\0" * 100)
    writer = JournalWriter(path)
    writer.close()
    assert writer.sealed == 100
    assert path.read_bytes() == whole


@pytest.mark.parametrize("line", [0, 1])
def test_a_flipped_byte_in_the_middle_stops_with_line_and_byte(tmp_path, line):
    path = tmp_path / "j"
    lines = write(path).splitlines(True)
    damaged = bytearray(lines[line])
    damaged[-6] ^= 1
    path.write_bytes(b"".join([*lines[:line], bytes(damaged), *lines[line + 1 :]]))
    with pytest.raises(
        JournalError, match=rf"line {line + 1} \(byte {sum(map(len, lines[:line]))}\)"
    ):
        JournalWriter(path)
    assert path.read_bytes().endswith(lines[-1]), "a damaged journal is never written to"


def test_a_removed_line_breaks_the_chain(tmp_path):
    path = tmp_path / "j"
    lines = write(path).splitlines(True)
    path.write_bytes(lines[0] + lines[2])
    with pytest.raises(JournalError, match="hash chain"):
        read_journal(path)


def test_an_altered_last_line_is_damage_not_a_torn_write(tmp_path):
    path = tmp_path / "j"
    lines = write(path).splitlines(True)
    _, forged = encode_line(GENESIS, {"kind": "told", "id": 7})
    path.write_bytes(lines[0] + lines[1] + forged)
    with pytest.raises(JournalError, match="line 3"):
        read_journal(path)


def test_nan_is_never_written(tmp_path):
    writer = JournalWriter(tmp_path / "j")
    with pytest.raises(ValueError, match="JSON compliant"):
        writer.append({"x": float("nan")})
    writer.close()
    assert (tmp_path / "j").read_bytes() == b""


def test_a_full_disk_leaves_a_whole_journal_and_says_so(tmp_path, monkeypatch):
    writer = JournalWriter(tmp_path / "j")
    writer.append(EVENTS[0])
    before = (tmp_path / "j").read_bytes()
    real = os.write
    monkeypatch.setattr(journal_module.os, "write", lambda file, data: real(file, data[:5]))
    with pytest.raises(JournalError, match="Free some space"):
        writer.append(EVENTS[1])
    monkeypatch.undo()
    assert (tmp_path / "j").read_bytes() == before
    writer.append(EVENTS[1])
    writer.close()
    assert read_journal(tmp_path / "j")[0] == EVENTS[:2]


def test_a_failed_fsync_stops_further_writes(tmp_path, monkeypatch):
    writer = JournalWriter(tmp_path / "j")

    def broken(file):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(journal_module.os, "fsync", broken)
    writer.append(EVENTS[0])
    deadline = time.monotonic() + 5
    while writer._failure is None and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(JournalError, match="fsync failed"):
        writer.append(EVENTS[1])
    monkeypatch.undo()
    with pytest.raises(JournalError, match="may not outlive a power cut"):
        writer.close()
    writer.close()


def test_an_fsync_that_fails_at_the_end_is_not_passed_over(tmp_path, monkeypatch):
    writer = JournalWriter(tmp_path / "j")
    monkeypatch.setattr(journal_module, "FSYNC_SECONDS", 60.0)
    writer.append(EVENTS[0])

    def broken(file):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(journal_module.os, "fsync", broken)
    with pytest.raises(JournalError, match="Input/output error"):
        writer.close()


def test_what_was_appended_survives_sigkill(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from evomerge.storage.journal import JournalWriter\n"
        "w = JournalWriter(Path(sys.argv[1]))\n"
        "for i in range(200): w.append({'kind': 'asked', 'id': i})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "j")], check=False)
    assert result.returncode == -9
    assert len(read_journal(tmp_path / "j")[0]) == 200
