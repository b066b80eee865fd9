"""Canary: now and then two known models again, which have to say what they said at the start.

Weights are compared with their recipe after every swap (`spot_check`). What a check of weights
cannot see is what an engine or a server keeps beside them: keys and values of an earlier candidate,
packed or encoded copies, another candidate's adapter.

Two models, the base and the first expert: were a cache never emptied, what the base left in it
would be right for the base ever after, and wrong for the expert. For the same reason the answers
of the start are made apart from an engine's caches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from evomerge.core.arrays import IntArray
from evomerge.core.model_space import ModelSpace
from evomerge.core.recipe import Recipe
from evomerge.errors import UnavailableError
from evomerge.evaluation.batching import SAME_WITHIN
from evomerge.evaluation.evaluator import Evaluator, Probes
from evomerge.evaluation.part import Part
from evomerge.evaluation.vllm_subject import VllmSubject

EXAMPLES = 8  # of each task
_AS_IT_IS = {"normalize": False}
_EPSILON = {"F64": 2.0**-52, "F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7}

Said = Sequence[float | str]


class Canary:
    """Compares what known models say with what they said first."""

    def __init__(
        self,
        space: ModelSpace,
        evaluators: Mapping[str, tuple[Evaluator, Any]],
        install: Callable[[Recipe], object],
        *,
        every: int,
        on_alive: Callable[[], object],
    ) -> None:
        """Look at nothing yet.

        Args:
            space: Its first two sources are the known models.
            evaluators: Task -> its evaluator and what it scores.
            install: Puts a recipe into everything that is scored.
            every: How many candidates are scored between two looks.
            on_alive: Called when a look has confirmed what was scored before it.
        """
        rows = np.eye(len(space.sources))[:2]
        self._known = {
            source: Recipe("linear", space.sources, {"weights": row}, settings=_AS_IT_IS)
            for source, row in zip(space.sources, rows[:, None], strict=False)
        }
        self._slack = max(SAME_WITHIN, 2 * _EPSILON[space.float_dtype])
        self._evaluators, self._install, self._every = dict(evaluators), install, every
        self._on_alive = on_alive
        self._first: dict[str, dict[str, Said]] = {}  # known model -> task -> what it said
        self._since: list[int] = []  # candidates scored since the last look

    def look(self, candidate: int) -> None:
        """Look at the known models if it is time to, before a candidate is installed.

        Args:
            candidate: Its id.

        Raises:
            UnavailableError: One of them says something else than at the start.
        """
        if not self._first:
            self._first = self._record()
        elif len(self._since) >= self._every:
            self.look_back()
        self._since.append(candidate)

    def look_back(self) -> None:
        """Look at the known models now, unless nothing was scored since the last look.

        Raises:
            UnavailableError: One of them says something else than at the start.
        """
        if not self._since:
            return
        for source, recipe in self._known.items():
            self._install(recipe)
            self._compare(source, self._first[source], self._said())
        self._since.clear()
        self._on_alive()

    def _record(self) -> dict[str, dict[str, Said]]:
        found = {}
        for source, recipe in self._known.items():
            self._install(recipe)
            with ExitStack() as stack:
                for subject in dict.fromkeys(subject for _, subject in self._evaluators.values()):
                    if isinstance(subject, VllmSubject):
                        stack.enter_context(subject.apart())
                found[source] = self._said()
        return found

    def _said(self) -> dict[str, Said]:
        return {task: _said(e, subject) for task, (e, subject) in self._evaluators.items()}

    def _compare(self, source: str, first: Mapping[str, Said], now: Mapping[str, Said]) -> None:
        for task, before in first.items():
            after = now[task]
            pairs = list(zip(before, after, strict=False))
            wrong = [pair for pair in pairs if not self._is_same(*pair)]
            if not wrong and len(before) == len(after):
                continue
            old, new = (repr(value)[:60] for value in (wrong or [(len(before), len(after))])[0])
            raise UnavailableError(
                f"canary: model {source!r} no longer says what it said at the start: {len(wrong)} "
                f"of {len(before)} values of task {task!r} differ, one was {old} and is {new}. "
                "Something of other candidates has survived in what scores them, so the scores of "
                f"candidates {self._since[0]} to {self._since[-1]} of this worker may be wrong: "
                "start a new run, and report this with the versions in the journal's first line"
            )

    def _is_same(self, before: float | str, after: float | str) -> bool:
        if isinstance(before, str) or isinstance(after, str):
            return before == after
        return math.isclose(before, after, rel_tol=self._slack, abs_tol=self._slack)


def _said(evaluator: Evaluator, subject: Any) -> Said:
    """Return what a model says about an evaluator's first examples; their scores, if no more."""
    n = min(EXAMPLES, evaluator.n_examples())
    whole: Evaluator = evaluator.whole if isinstance(evaluator, Part) else evaluator
    positions: IntArray = evaluator.kept[:n] if isinstance(evaluator, Part) else np.arange(n)
    if isinstance(whole, Probes):
        return list(whole.probe(subject, positions))
    return [float(score) for score in whole.evaluate(subject, positions)]
