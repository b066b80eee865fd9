"""`evomerge replay`: is a candidate's score what the journal says?"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from evomerge.config.locate import locate
from evomerge.config.replay_run import TaskReplay, replay_candidate

EQUAL, DIFFERENT = 0, 3


def replay_command(run: Path, candidate: int, *, as_json: bool) -> int:
    """Print how a candidate done again compares with the journal; returns the exit code."""
    done = replay_candidate(locate(run), candidate)
    code = EQUAL if done.is_equal else DIFFERENT
    if as_json:
        print(json.dumps(dataclasses.asdict(done) | {"equal": done.is_equal}))
        return code
    if done.weights == done.recorded_weights:
        print(f"✓ weights: {done.weights}, as scored")
    else:
        print(f"✗ weights: {done.weights}, the journal has {done.recorded_weights}")
    for task in done.tasks:
        print(_line(task))
    return code


def _line(task: TaskReplay) -> str:
    if not task.n_different:
        return f"✓ {task.task}: {task.n} examples score the same"
    return (
        f"✗ {task.task}: {task.n_different} of {task.n} examples score otherwise, by up to "
        f"{task.largest:.3g}; the first is example {task.example}"
    )
