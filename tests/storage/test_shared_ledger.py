"""Scores that several processes read and write at once."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from evomerge.errors import UnavailableError
from evomerge.storage.shared_ledger import FILE, SharedLedger

EXAMPLES = tuple(hashlib.sha256(bytes([i])).hexdigest()[:16] for i in range(20))


def test_what_was_written_is_read_bit_for_bit(tmp_path):
    ledger = SharedLedger(tmp_path / "ledger")
    scores = np.random.default_rng(0).normal(size=20).astype(np.float32)
    scores[3] = np.nan
    ledger.write("w", "s", EXAMPLES, scores)
    found = SharedLedger(tmp_path / "ledger").read("w", "s", EXAMPLES[::-1])
    assert np.array_equal(found[::-1], scores, equal_nan=True)


@pytest.mark.parametrize(("weights", "settings"), [("other", "s"), ("w", "other"), ("", "w:s")])
def test_other_weights_or_settings_have_other_scores(tmp_path, weights, settings):
    ledger = SharedLedger(tmp_path)
    ledger.write("w", "s", EXAMPLES, np.ones(20, np.float32))
    assert np.isnan(ledger.read(weights, settings, EXAMPLES)).all()


def test_scores_are_added_and_never_replaced(tmp_path):
    ledger = SharedLedger(tmp_path)
    ledger.write("w", "s", EXAMPLES[:5], np.full(5, 0.25, np.float32))
    ledger.write("w", "s", EXAMPLES[3:8], np.full(5, 0.75, np.float32))
    assert ledger.read("w", "s", EXAMPLES[:8]).tolist() == [0.25] * 5 + [0.75] * 3


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    code = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from evomerge.storage.shared_ledger import SharedLedger\n"
        "ledger, me = SharedLedger(Path(sys.argv[1])), int(sys.argv[2])\n"
        "for k in range(20):\n"
        "    ledger.write(f'{me}-{k}', 's', sys.argv[3:], np.full(20, me, np.float32))\n"
        "    ledger.write('same', 's', sys.argv[3:], np.full(20, 7, np.float32))\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path, str(me), *EXAMPLES])
        for me in range(3)
    ]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    ledger = SharedLedger(tmp_path)
    for me in range(3):
        for k in range(20):
            assert (ledger.read(f"{me}-{k}", "s", EXAMPLES) == me).all()
    assert (ledger.read("same", "s", EXAMPLES) == 7).all()


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / FILE).write_bytes(b"no database" * 100)
    with pytest.raises(UnavailableError, match=r"scores\.sqlite: the shared ledger cannot be used"):
        SharedLedger(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match="cannot hold the shared ledger"):
        SharedLedger(tmp_path / "file" / "ledger")
