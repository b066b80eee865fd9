"""Scorers that run out of memory once. Importable, so that actors can build them."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
import psutil

from evomerge.core.candidate import Candidate, Evaluation
from evomerge.search.ports import Outcome
from tests.cluster.scorers import Fake


class Hungry(Fake):
    """The first evaluation of candidate 3 needs more memory than its process may have."""

    def evaluate(self, candidate: Candidate) -> Outcome:
        if candidate.id == 3 and not (self.folder / "was-hungry").exists():
            (self.folder / "was-hungry").touch()
            limit = psutil.Process().memory_info().vms + (64 << 20)
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
            try:
                np.ones(1 << 30, dtype=np.uint8)
            finally:
                resource.setrlimit(
                    resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
                )
        return Outcome(Evaluation(candidate, {"t": np.zeros(4, np.float32)}), 0.0, self.name)


class Greedy(Fake):
    """The first evaluation of candidate 3 takes more than its control group has: the kernel kills."""

    def evaluate(self, candidate: Candidate) -> Outcome:
        group = Path((self.folder / "group").read_text())
        if candidate.id == 3 and not (self.folder / "was-greedy").exists():
            (self.folder / "was-greedy").touch()
            (group / "cgroup.procs").write_text(str(os.getpid()))
            np.ones(1 << 30, dtype=np.uint8)
        return Outcome(Evaluation(candidate, {"t": np.zeros(4, np.float32)}), 0.0, self.name)


def greedy(folder: Path, name: str) -> Greedy:
    return Greedy(name, folder, 0.0)


def hungry(folder: Path, name: str) -> Hungry:
    return Hungry(name, folder, 0.0)
