"""What runs in a worker process of a cluster, and what it answers. Does not import Ray.

Light on purpose: nothing here imports torch before the environment of the worker is set.
"""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.core.candidate import Candidate, Evaluation
from evomerge.core.recipe import Recipe
from evomerge.errors import EvomergeError, ExecutorError, UnavailableError, first_line
from evomerge.runtime.assignments import Assignment
from evomerge.search.ports import Outcome

if TYPE_CHECKING:
    from evomerge.runtime.worker import CandidateScorer


SICK = 70  # exit status of a worker whose device failed


@dataclass(frozen=True)
class Reply:
    """What an actor answers; exceptions travel as text, so that they can always be unpickled.

    Attributes:
        value: What the call returned; None when it failed.
        error: One line that says why it failed.
        detail: Traceback of the failure; of a worker that was built: what is worth a note.
        unavailable: Why no candidate can be scored any more, which ends the run; "" otherwise.
    """

    value: Any = None
    error: str | None = None
    detail: str = ""
    unavailable: str = ""


class ScorerActor:
    """The process of one worker. Plain: `RayPool` turns it into a Ray actor."""

    def __init__(self, environment: dict[str, str]) -> None:
        """Set environment variables before anything imports torch."""
        os.environ.update(environment)
        self._scorer: CandidateScorer | None = None
        self._ancestors: dict[str, Recipe] = {}  # that the driver has sent so far

    def build(self, factory: bytes, name: str, path: list[str]) -> Reply:
        """Build the worker; the reply says whether that worked.

        Args:
            factory: Pickled factory; unpickled here so that its imports can fail politely.
            name: Of the worker.
            path: The driver's `sys.path`; what is missing here is appended.
        """
        sys.path.extend(entry for entry in path if entry not in sys.path)
        try:
            self._scorer = pickle.loads(factory)(name)
        except Exception as error:
            return _failure(error)
        return Reply(detail="\n".join(getattr(self._scorer, "notes", ())))

    def evaluate(self, candidate: Candidate, ancestors: Mapping[str, Recipe]) -> Reply:
        """Score one candidate; the value is what the outcome holds beside the candidate.

        Args:
            candidate: See `call_of`.
            ancestors: See `call_of`.
        """
        assert self._scorer is not None
        try:
            # Built anew: unpickled arrays have lost their read-only flag.
            for name, part in ancestors.items():
                self._ancestors[name] = replace(part, ancestors=self._ancestors)
            recipe = replace(candidate.recipe, ancestors=self._ancestors)
            candidate = replace(candidate, recipe=recipe)
            outcome = self._scorer.evaluate(candidate)
        except UnavailableError as error:
            return Reply(unavailable=str(error))
        except ExecutorError as error:
            # Only a new process gets a sick device back; its driver tries the candidate again.
            print(error, file=sys.stderr, flush=True)
            os._exit(SICK)
        except Exception as error:
            return _failure(error)
        done = outcome.evaluation
        if outcome.is_transient:
            return Reply(error=done.error, detail=outcome.detail)
        # Plain arrays: a scorer may return views, mappings or subclasses of anything.
        scores, margins = (
            {str(task): np.array(v, np.float32) for task, v in given.items()}
            for given in (done.scores, done.margins)
        )
        found = (scores, margins, done.error, done.weights_digest)
        return Reply((*found, outcome.seconds, outcome.detail))

    def last_look(self) -> Reply:
        """Have a worker with a canary look at it once more; see `Worker.last_look`."""
        try:
            getattr(self._scorer, "last_look", lambda: None)()
        except UnavailableError as error:
            return Reply(unavailable=str(error))
        except Exception as error:
            return _failure(error)
        return Reply()


def call_of(candidate: Candidate, sent: set[str]) -> tuple[Candidate, dict[str, Recipe]]:
    """Return what `ScorerActor.evaluate` takes: thousands of ancestors need not travel every time.

    Args:
        candidate: What is to be scored.
        sent: Ids of the ancestors that the process has; those that go out now are added.

    Returns:
        The candidate without ancestors; and id -> recipe of those that are new, the oldest first,
        each without its own.
    """
    new = {name: part.bare() for name, part in candidate.recipe.closure(sent).items()}
    sent.update(new)
    return replace(candidate, recipe=candidate.recipe.bare()), new


def _failure(error: Exception) -> Reply:
    first = first_line(error)
    if not isinstance(error, EvomergeError):
        first = f"{type(error).__name__}: {first}"
    return Reply(error=first, detail=traceback.format_exc())


def outcome_of(reply: Reply, assignment: Assignment, worker: str) -> Outcome:
    """Return the outcome a successful reply stands for, about the driver's own candidate.

    Raises:
        UnavailableError: It says that no candidate can be scored any more.
    """
    if reply.unavailable:
        raise UnavailableError(reply.unavailable)
    scores, margins, error, weights_digest, seconds, detail = reply.value
    # Copies: large answers lie in Ray's object store for as long as an array shows them.
    scores, margins = (
        {task: np.array(values) for task, values in given.items()} for given in (scores, margins)
    )
    evaluation = Evaluation(assignment.candidate, scores, error, weights_digest, margins=margins)
    return Outcome(evaluation, seconds, worker, assignment.attempt, detail)
