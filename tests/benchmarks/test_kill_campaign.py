"""benchmarks/kill_campaign.py: its own bookkeeping, and a few kills."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kill_campaign import Snapshot

ROOT = Path(__file__).parents[2]


def test_a_snapshot_knows_what_a_later_one_has_lost() -> None:
    before = Snapshot(told=(0, 1), parked=frozenset({3}))
    assert before.recorded == 3
    assert before.lost_in(Snapshot(told=(0, 1, 2, 3))) == 0
    assert before.lost_in(Snapshot(told=(0, 1), parked=frozenset({3}))) == 0
    assert before.lost_in(Snapshot(told=(0, 1, 2))) == 1
    assert before.lost_in(Snapshot()) == 3
    assert before.lost_in(Snapshot(told=(1, 0, 3))) == 1  # told in another order


@pytest.mark.slow
def test_a_short_campaign_loses_nothing() -> None:
    command = [sys.executable, "benchmarks/kill_campaign.py", "--smoke", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["kills"] == 6
    assert (figures["lost"], figures["duplicated"], figures["identical"]) == (0, 0, True)
