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
