"""Scorers for the cluster tests. Importable, so that actors unpickle factories by reference."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from evomerge.core.candidate import Candidate, Evaluation
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError, UnavailableError
from evomerge.search.ports import Outcome


def candidate(number: int, value: float = 0.0) -> Candidate:
    recipe = Recipe("linear", ("a", "b"), {"weights": np.full((3, 2), value)})
    return Candidate(number, recipe, (), 1000 + number, "test")


class Fake:
    """What it does is read from the first weight of the candidate, see the constants."""

    def __init__(self, name: str, folder: Path | None, seconds: float) -> None:
        self.name, self.folder, self.seconds = name, folder, seconds

    def evaluate(self, candidate: Candidate) -> Outcome:
        value = float(candidate.recipe.params["weights"][0, 0])
        if self.folder is not None:  # what was begun, by whom, with which seed
            with (self.folder / "begun").open("a") as file:
                file.write(f"{candidate.id} {os.getpid()} {candidate.seed}\n")
        if value == DIES:
            os.kill(os.getpid(), signal.SIGKILL)
        if value == RAISES:
            raise Unpicklable("out of luck")
        if value == HANGS:
            time.sleep(3600)
        if value == NO_SERVER:
            raise UnavailableError("server http://x cannot be reached; resume the run")
        if value == ERRS:
            return Outcome(Evaluation(candidate, error="bad recipe"), 0.1, self.name, 1, "because")
        time.sleep(value if value > 0 else self.seconds)
        assert not candidate.recipe.params["weights"].flags.writeable
        scores = np.full(4, candidate.id, np.float32)
        return Outcome(Evaluation(candidate, {"t": scores}, None, "d"), 0.5, self.name)

    def last_look(self) -> None:
        if self.folder is not None and (self.folder / "canary").exists():
            raise UnavailableError("canary: died")


DIES, RAISES, HANGS, ERRS, NO_SERVER = -1.0, -2.0, -3.0, -4.0, -5.0


class Unpicklable(Exception):
    def __reduce__(self):
        raise TypeError("no")


def fake(folder: Path | None, seconds: float, name: str) -> Fake:
    return Fake(name, folder, seconds)


def refuse(name: str) -> Fake:
    raise ConfigError("the donor has no config.json")


def die(name: str) -> Fake:
    os._exit(1)


def die_or_refuse_once(folder: Path, name: str) -> Fake:
    """Fails for the first two processes, each in its own way."""
    for kind in ("die", "refuse"):
        try:
            (folder / kind).touch(exist_ok=False)
        except FileExistsError:
            continue
        os._exit(1) if kind == "die" else refuse(name)
    return Fake(name, None, 0.0)


class Environment:
    """Says what its process can see."""

    def __init__(self, name: str) -> None:
        self.name = name

    def evaluate(self, candidate: Candidate) -> Outcome:
        seen = f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r}"
        return Outcome(Evaluation(candidate, error=seen), 0.0, self.name)


class ManyScores:
    """Answers with more than Ray sends inline."""

    n = 200_000

    def __init__(self, name: str) -> None:
        self.name = name

    def evaluate(self, candidate: Candidate) -> Outcome:
        scores = np.full(self.n, candidate.id, np.float32)
        return Outcome(Evaluation(candidate, {"t": scores}), 0.0, self.name)
