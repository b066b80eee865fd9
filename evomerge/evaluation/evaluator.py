"""Evaluator: turns one merged model into one score per example.

An evaluator is a frozen dataclass whose fields are its config keys, registered with
`@evaluator("name")`. Fields of type `Path` are resolved against the config file's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from evomerge.core.arrays import IntArray, ScoreArray
from evomerge.registry import Registry

if TYPE_CHECKING:
    from evomerge.evaluation.subject import Subject

evaluators = Registry("evaluator", "evomerge.evaluators")
evaluator = evaluators.register


class Evaluator(Protocol):
    """Scores merged models on a fixed set of examples."""

    @property
    def auto_class(self) -> str | None:
        """The transformers Auto class of the resident model; None: a server holds the model."""
        ...

    def n_examples(self) -> int:
        """Return N, reading the data; raises DataError when it is missing or malformed."""
        ...

    def evaluate(self, subject: Subject, positions: IntArray | None = None) -> ScoreArray:
        """Return float32 scores, higher is better.

        The score of an example does not depend on which others are asked for.

        Args:
            subject: The resident model.
            positions: (n,) which examples to score, each in [0, N); None: all N in order.

        Returns:
            (n,) or (N,) scores, in the order of `positions`.

        Raises:
            EvaluationError: A score is not finite or the model cannot answer.
            IndexError: There is no such example.
        """
        ...


@runtime_checkable
class DigestsExamples(Protocol):
    """An evaluator that says what each example holds, so that a score can be kept for it."""

    def example_digests(self) -> tuple[str, ...]:
        """Return (N,) digests of the examples' content (prompt, options, answer), 16 hex each.

        Settings of the evaluator are not part of it, nor is the place in the file: equal
        examples have equal digests.
        """
        ...


@runtime_checkable
class Probes(Protocol):
    """An evaluator that can say more of a model than its scores, to tell whether it is the same."""

    def probe(self, subject: Any, positions: IntArray) -> Sequence[float | str]:
        """Return what the model says about examples: equal whenever the model is.

        Args:
            subject: As for `evaluate`.
            positions: (n,) which examples, each in [0, N).

        Returns:
            Numbers, equal within rounding, and texts, any number of them.
        """
        ...


def example_digests(evaluator: Evaluator) -> tuple[str, ...] | None:
    """Return the (N,) digests of an evaluator's examples; None when it does not give any."""
    return evaluator.example_digests() if isinstance(evaluator, DigestsExamples) else None
