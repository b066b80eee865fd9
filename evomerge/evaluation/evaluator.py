"""Evaluator: turns one merged model into one score per example.

An evaluator is a frozen dataclass whose fields are its config keys, registered with
`@evaluator("name")`. Fields of type `Path` are resolved against the config file's folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from evomerge.core.arrays import ScoreArray
from evomerge.registry import Registry

if TYPE_CHECKING:
    from evomerge.evaluation.subject import Subject

evaluators = Registry("evaluator", "evomerge.evaluators")
evaluator = evaluators.register


class Evaluator(Protocol):
    """Scores merged models on a fixed set of examples."""

    auto_class: str  # the transformers Auto class the resident model is loaded with

    def n_examples(self) -> int:
        """Return N, reading the data; raises DataError when it is missing or malformed."""
        ...

    def evaluate(self, subject: Subject) -> ScoreArray:
        """Return (N,) float32 scores in the order of the examples, higher is better.

        Raises:
            EvaluationError: A score is not finite or the model cannot answer.
        """
        ...
