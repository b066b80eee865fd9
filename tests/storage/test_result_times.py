import pytest

from evomerge.errors import RunError
from evomerge.storage.event_lines import Result
from evomerge.storage.result_times import ResultTimes

FIRST = "2026-11-22T10:00:00Z candidate 3 scored worker=w attempt=1 seconds=2.500 a note\n"


def test_lines_are_read_as_they_come(tmp_path):
    log = tmp_path / "events.log"
    times = ResultTimes(log)
    times.poll()
    assert times.pop(3) is None
    log.write_text("2026-11-22T09:59:00Z machine Linux\n" + FIRST[:40])
    times.poll()
    assert times.sessions == [1795341540.0]
    assert times.pop(3) is None  # the line is not whole yet
    log.write_text("2026-11-22T09:59:00Z machine Linux\n" + FIRST)
    times.poll()
    assert times.pop(3) == Result(1795341600.0, 3, False, "w", 2.5)
    assert times.pop(3) is None


def test_what_only_looks_like_a_line_is_passed_over(tmp_path):
    log = tmp_path / "events.log"
    log.write_bytes(
        b"2026-99-22T10:00:00Z candidate 1 scored worker=w attempt=1 seconds=1\n"
        b"2026-11-22T10:00:00Z candidate 2 failed worker=w attempt=1 seconds=1.2.3\n"
        b"\xff\xfe no text\n2026-13-22T10:00:00Z machine x\n" + FIRST.encode()
    )
    times = ResultTimes(log)
    times.poll()
    assert [times.pop(i) is not None for i in (1, 2, 3)] == [False, False, True]
    assert times.sessions == []


def test_a_log_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "events.log").mkdir()
    with pytest.raises(RunError, match="cannot be read"):
        ResultTimes(tmp_path / "events.log").poll()
