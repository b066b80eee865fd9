"""Problem: small models kept in memory, what merging them may do, and how a merge is scored.

Candidates take the way of a real run: recipe -> `materialize` over aligned sources -> forward ->
per-example scores. Only files and worker processes are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from evomerge.config.merge_space import build_space
from evomerge.core.arrays import ScoreArray
from evomerge.core.candidate import Candidate, Evaluation
from evomerge.core.linear_span import LinearSpan, block_size
from evomerge.core.model_space import ModelSpace, SourceHeader, TensorSpec, align
from evomerge.core.objective import Objective, Objectives
from evomerge.core.recipe import Recipe
from evomerge.core.search_space import SearchSpace
from evomerge.merging.derived import Derived, derive_for
from evomerge.merging.grams import block_grams
from evomerge.merging.materialize import materialize
from evomerge.merging.operator import merge_operators

Part = Literal["search", "held-out"]
Weights = Mapping[str, Tensor]
# (tensors of the merged model, part) -> task -> (N_task,) scores in [0, 1], or margins
Score = Callable[[Weights, Part], Mapping[str, ScoreArray]]


@dataclass(frozen=True, eq=False)
class MemorySource:
    """A model in memory, as merging reads it.

    Attributes:
        id: Name of the source.
        tensors: Name -> float32 tensor; never written to.
    """

    id: str
    tensors: Weights

    @cached_property
    def _digests(self) -> dict[str, str]:
        return {
            name: hashlib.blake2b(tensor.numpy().tobytes(), digest_size=16).hexdigest()
            for name, tensor in self.tensors.items()
        }

    @property
    def digest(self) -> str:
        """Content digest of the whole model."""
        text = repr(sorted(self._digests.items()))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def header(self) -> SourceHeader:
        """Return names, shapes and digests."""
        specs = {
            name: TensorSpec(name, "F32", tuple(tensor.shape))
            for name, tensor in self.tensors.items()
        }
        return SourceHeader(self.id, "", specs, self._digests)

    def read(self, name: str) -> Tensor:
        """Return one tensor."""
        return self.tensors[name]

    def read_range(self, name: str, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor."""
        return self.tensors[name].reshape(-1)[start:stop]

    def exact_delta(self, name: str) -> Tensor | None:
        """Return None: only adapters know their task vectors exactly."""
        del name


@dataclass(frozen=True, eq=False)
class Problem:
    """One search problem.

    Attributes:
        name: What the tables call it.
        summary: One line: models, tasks, examples.
        models: Source id -> tensors, the base first when there is one.
        has_base: Whether the first model is the base of the others.
        merge: The `merge:` section for algorithms that search parameters of a merge method.
            Algorithms that need the span of the sources search raw linear merges instead. Where it
            names no groups, an algorithm that says how many numbers it searches best gets as many,
            all others the layers.
        sizes: Task -> number of search examples.
        score: Scores a merged model. Tasks of the search are the objectives.
        is_margin: `score` returns margins; an example scores 1 where its margin is above 0.
        optimum: Best mean of the objectives that any merge can reach, where it is known.
    """

    name: str
    summary: str
    models: Mapping[str, Weights]
    has_base: bool
    merge: Mapping[str, Any]
    sizes: Mapping[str, int]
    score: Score
    optimum: float | None = None
    is_margin: bool = False
    _derived: dict[str, Derived] = field(default_factory=dict)

    @property
    def n_examples(self) -> int:
        """Examples that one full evaluation scores."""
        return sum(self.sizes.values())

    @cached_property
    def objectives(self) -> Objectives:
        """One per task."""
        return Objectives(tuple(Objective(task, {task: 1.0}) for task in self.sizes))

    @cached_property
    def sources(self) -> dict[str, MemorySource]:
        """The models as merging reads them."""
        return {name: MemorySource(name, tensors) for name, tensors in self.models.items()}

    @cached_property
    def model_space(self) -> ModelSpace:
        """The aligned models."""
        headers = [source.header() for source in self.sources.values()]
        return align(headers, has_base=self.has_base)

    @cached_property
    def span(self) -> LinearSpan:
        """Geometry of the span of the models."""
        space = self.model_space
        block = block_size(space.n_elements)
        grams = block_grams(space, self.sources, block)
        return LinearSpan.from_block_grams(
            space.sources, space.n_elements, block, grams, space.tensor_breaks
        )

    def search_space(self, algorithm: type) -> SearchSpace:
        """Return what an algorithm of this class searches, with all founders."""
        in_span = bool(getattr(algorithm, "needs_span", False))
        numbers = getattr(algorithm, "wanted_numbers", None)
        body = {"name": "linear", "normalize": False} if in_span else self.merge
        usual = {} if in_span or numbers is not None else {"groups": "layer"}
        return build_space(
            {**usual, **body},
            self.model_space,
            founders="all",
            span=self.span if in_span else None,
            in_span=in_span,
            numbers=numbers,
        )[0]

    def merged(self, recipe: Recipe) -> dict[str, Tensor]:
        """Return the tensors of a recipe; do not write to them."""
        derived = self._derived.get(recipe.operator)
        if derived is None:
            operator = merge_operators.get(recipe.operator)
            derived = derive_for(operator, self.model_space, self.sources)
            self._derived[recipe.operator] = derived
        return dict(materialize(recipe, self.model_space, self.sources, derived))

    def scores(self, recipe: Recipe, part: Part) -> Mapping[str, ScoreArray]:
        """Return task -> (N_task,) scores of a recipe's model on one part of the examples."""
        return self.evaluation(Candidate(0, recipe), part).scores

    def evaluation(self, candidate: Candidate, part: Part) -> Evaluation:
        """Return what a candidate scores on one part of the examples, margins included."""
        with torch.inference_mode():
            found = self.score(self.merged(candidate.recipe), part)
        if not self.is_margin:
            return Evaluation(candidate, found)
        scores = {task: (own > 0.0).astype(np.float32) for task, own in found.items()}
        return Evaluation(candidate, scores, margins=found)


def leads(logits: Tensor, right: Tensor) -> Tensor:
    """Return by how much the logit of the right label leads the best other one.

    Args:
        logits: (…, labels).
        right: (…) integers.
    """
    index = right[..., None]
    others = logits.scatter(-1, index, -torch.inf).amax(-1)
    return logits.gather(-1, index)[..., 0] - others
