"""events.log is read piece by piece, and says how fast results arrive."""

import pytest

from evomerge.errors import RunError
from evomerge.storage.event_lines import parse_result
from evomerge.watch.log import MAX_LINES, LogFollower, Speed

TEN = 1774864800.0  # 2026-03-30T10:00:00Z


def result(i, second=0, worker="w0", state="scored", minute=0):
    return (
        f"2026-03-30T10:{minute:02d}:{second:02d}Z candidate {i} {state} worker={worker} "
        "attempt=1 seconds=2.000\n"
    )


def machine(second=0):
    return f"2026-03-30T10:00:{second:02d}Z machine Linux\n"


@pytest.fixture
def log(tmp_path):
    return LogFollower(tmp_path / "events.log")


def write(log, *lines):
    with log._path.open("a") as file:
        file.writelines(lines)
    log.poll()


def test_there_may_be_no_log(log):
    log.poll()
    assert (list(log.lines), log.speed(lambda _: 1, now=TEN)) == ([], None)


def test_a_line_is_taken_when_it_is_whole(log):
    whole = result(0)
    write(log, machine(), whole[:30])
    assert (log.n_lines, log.session) == (1, [])
    write(log, whole[30:])
    assert [item.candidate for item in log.session] == [0]
    assert log.session[0].at == TEN


def test_workers_are_those_of_the_latest_session(log):
    write(log, machine(), result(0), result(1, worker="w1", state="failed"), result(2))
    first, second = (log.workers[name] for name in ("w0", "w1"))
    assert (first.finished, first.failed, first.mean_seconds, first.last) == (2, 0, 2.0, TEN)
    assert (second.finished, second.failed) == (1, 1)
    write(log, machine(5))
    assert log.workers == {}


def test_speed_is_that_of_the_last_minute_while_a_search_runs(log):
    write(log, machine(), *(result(i, i) for i in range(25)))
    write(log, *(result(i, i - 25, minute=9) for i in range(25, 55)))
    assert log.speed(lambda _: 24, now=TEN + 570) == Speed(30.0, 24 * 30 / 60)


def test_speed_of_slow_results_looks_back_further_than_a_minute(log):
    write(log, machine(), *(result(i, minute=i) for i in range(30)))
    found = log.speed(lambda _: 1, now=TEN + 29 * 60)
    assert found.evaluations_per_minute == pytest.approx(20 / 19)


def test_speed_of_a_search_that_ended_is_that_of_its_session(log):
    write(log, machine(), *(result(i, 3 * i) for i in range(11)))
    assert log.speed(lambda i: i, now=None) == Speed(22.0, 55 / 30)


def test_a_clock_that_was_set_back_gives_no_negative_speed(log):
    write(log, machine(30), result(0, 20), result(1, 10))
    for now in (None, TEN, TEN + 15):
        found = log.speed(lambda _: 1, now=now)
        assert found is not None
        assert found.evaluations_per_minute >= 0.0


def test_draining_is_known_until_the_next_session(log):
    write(log, machine(), "2026-03-30T10:00:01Z draining; 2 evaluations are running\n")
    assert log.is_draining
    write(log, machine(9))
    assert not log.is_draining


def test_losses_are_kept(log):
    write(log, "2026-03-30T10:00:01Z worker w1 died while idle\n")
    assert list(log.lost) == ["2026-03-30T10:00:01Z worker w1 died while idle"]


def test_a_log_that_was_replaced_is_read_anew(log):
    write(log, machine(), result(0), result(1))
    log._path.write_text(machine() + result(7))
    log.poll()
    assert [item.candidate for item in log.session] == [7]


def test_memory_does_not_grow_with_the_lines_of_a_log(log):
    write(log, *(f"line {i}\n" for i in range(3 * MAX_LINES)))
    assert (len(log.lines), log.n_lines, log.lines[-1]) == (500, 1500, "line 1499")


def test_what_only_looks_like_a_result_is_none():
    assert parse_result(result(0).replace("2026-03-30", "2026-13-99")) is None
    assert parse_result(result(0).replace("2.000", "2.0.0")) is None
    assert parse_result(" " + result(0)) is None


def test_a_log_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "events.log").mkdir()
    with pytest.raises(RunError, match=r"events\.log: cannot be read"):
        LogFollower(tmp_path / "events.log").poll()
