"""Part: some examples of an evaluator, as an evaluator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evomerge.core.arrays import IntArray, ScoreArray
from evomerge.evaluation.evaluator import DigestsExamples, Evaluator
from evomerge.evaluation.examples import chosen


@dataclass(frozen=True, eq=False)
class Part:
    """An evaluator that has only some of another one's examples.

    What only some evaluators have (`candidate`, `meter`, `code_files`, …) is that of the whole.

    Attributes:
        whole: The other evaluator, which gives digests of its examples.
        kept: (n,) positions of these examples in it.
    """

    whole: Evaluator
    kept: IntArray

    def __getattr__(self, name: str) -> Any:
        """Return what the whole evaluator has under a name that this class has not."""
        if name.startswith("__") or name == "whole":  # asked for by copy and pickle
            raise AttributeError(name)
        return getattr(self.whole, name)

    @property
    def auto_class(self) -> str | None:
        """The transformers Auto class of the resident model; None: a server holds the model."""
        return self.whole.auto_class

    def n_examples(self) -> int:
        """Return n."""
        return len(self.kept)

    def example_digests(self) -> tuple[str, ...]:
        """Return (n,) digests of these examples."""
        assert isinstance(self.whole, DigestsExamples)  # parts are drawn by digest
        digests = self.whole.example_digests()
        return tuple(digests[i] for i in self.kept)

    def evaluate(self, subject: Any, positions: IntArray | None = None) -> ScoreArray:
        """Return the scores of these examples; see `Evaluator.evaluate`."""
        return self.whole.evaluate(subject, self.kept[chosen(len(self.kept), positions)])


def whole_of(evaluator: Evaluator) -> Evaluator:
    """Return the evaluator that one is a part of, or itself."""
    return evaluator.whole if isinstance(evaluator, Part) else evaluator
