"""Rows of scores: read back, and never believed unseen."""

import numpy as np
import pytest

from evomerge.errors import JournalError
from evomerge.storage.score_log import ScoreLog


def test_rows_come_back_with_their_digests(tmp_path):
    log = ScoreLog(tmp_path / "scores.f32", 3)
    log.open_for_append(0)
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    told = [log.append(row) for row in rows]
    log.close()
    for row, (number, digest) in zip(rows, told, strict=True):
        np.testing.assert_array_equal(log.read(number, digest), row)


@pytest.mark.parametrize(("n_examples", "row"), [(10**12, 0), (3, 10**15), (3, -1), (3, 1)])
def test_a_row_that_is_not_there_is_an_error_at_once(n_examples, row, tmp_path):
    file = tmp_path / "scores.f32"
    file.write_bytes(bytes(12))
    with pytest.raises(JournalError, match="missing or was altered"):
        ScoreLog(file, n_examples).read(row, "0" * 32)


def test_margins_lie_behind_the_scores_and_are_covered_by_the_digest(tmp_path):
    header = {"tasks": {"a": 2, "b": 1}, "margins": True}
    log = ScoreLog.of(tmp_path / "scores.f32", header)
    assert log.has_margins
    log.open_for_append(0)
    scores, margins = np.array([1, 0, 1], np.float32), np.array([2.5, -1, np.nan], np.float32)
    number, digest = log.append(scores, margins)
    bare = log.append(scores)
    log.close()
    assert log.path.stat().st_size == 2 * 6 * 4
    np.testing.assert_array_equal(log.read(number, digest), scores)
    np.testing.assert_array_equal(log.read_both(number, digest), (scores, margins))
    assert np.isnan(log.read_both(*bare)[1]).all()
    data = bytearray(log.path.read_bytes())
    data[4 * 4] ^= 1  # of the second margin
    log.path.write_bytes(data)
    with pytest.raises(JournalError, match="altered"):
        log.read(number, digest)


def test_a_log_without_margins_keeps_none(tmp_path):
    log = ScoreLog.of(tmp_path / "scores.f32", {"tasks": {"a": 2}})
    log.open_for_append(0)
    told = log.append(np.ones(2, np.float32), np.ones(2, np.float32))
    log.close()
    assert log.path.stat().st_size == 8
    assert np.isnan(log.read_both(*told)[1]).all()


def test_a_row_of_margins_of_another_length_is_refused(tmp_path):
    log = ScoreLog(tmp_path / "scores.f32", 2, has_margins=True)
    log.open_for_append(0)
    with pytest.raises(JournalError, match="expected 2"):
        log.append(np.ones(2, np.float32), np.ones(3, np.float32))
    log.close()
