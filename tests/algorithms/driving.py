"""Runs an algorithm against a function of the search vector; no models, no failures by default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evomerge.algorithms.algorithm import SearchAlgorithm
from evomerge.core.candidate import Candidate, Evaluation, Proposal
from evomerge.core.objective import Objective, Objectives
from evomerge.core.recipe import Recipe
from evomerge.core.search_space import SearchedParam, SearchSpace
from evomerge.seeding import generator


def task_space(n_experts: int = 3, low: float = 0.0, high: float = 1.0, **changes) -> SearchSpace:
    """Return weights of task vectors, one group, without founders."""
    space = SearchSpace(
        "task_arithmetic",
        ("base", *(f"e{i}" for i in range(n_experts))),
        "global",
        1,
        (SearchedParam("weights", n_experts, True, low, high, 1.0 / n_experts),),
        {"lambda_": np.ones(1)},
        {"normalize": False},
    )
    return replace(space, **changes)


def objectives(n: int = 1) -> Objectives:
    """Return n objectives o0, o1, … of one task each."""
    return Objectives(tuple(Objective(f"o{i}", {f"o{i}": 1.0}) for i in range(n)))


@dataclass
class Run:
    """An algorithm, told at once after each ask."""

    algorithm: SearchAlgorithm
    space: SearchSpace
    score: Callable[[Recipe], float | Sequence[float] | None]
    n_objectives: int = 1
    seed: int = 0
    asked: int = 0

    def __post_init__(self) -> None:
        self.proposals: list[Proposal] = []
        self.values: list[float | None] = []
        self.algorithm.start(self.space, objectives(self.n_objectives), generator(self.seed))

    def tell(self, proposal: Proposal) -> None:
        """Score and tell a proposal; a score of None is a failure."""
        candidate = Candidate(self.asked, proposal.recipe, proposal.parents)
        self.asked += 1
        found = self.score(proposal.recipe)
        if found is None:
            self.algorithm.tell(Evaluation(candidate, error="planned failure"))
            return
        scores = {f"o{i}": np.array([v], np.float32) for i, v in enumerate(np.atleast_1d(found))}
        self.algorithm.tell(Evaluation(candidate, scores))

    def founders(self) -> Run:
        """Tell the space's founders."""
        for proposal in self.space.founders:
            self.tell(proposal)
        return self

    def step(self, n: int) -> list[Proposal]:
        """Ask and tell n times; return the proposals."""
        new: list[Proposal] = []
        for _ in range(n):
            proposal = self.algorithm.ask()
            assert proposal is not None
            self.tell(proposal)
            new.append(proposal)
        self.proposals += new
        return new

    def batch(self) -> list[Proposal]:
        """Ask until the algorithm waits, then tell all of it; return the proposals."""
        new: list[Proposal] = []
        while (proposal := self.algorithm.ask()) is not None:
            new.append(proposal)
        for item in new:
            self.tell(item)
        self.proposals += new
        return new


def weights(proposals: Sequence[Proposal], name: str = "weights") -> np.ndarray:
    """Return (n, width) a parameter of one-group recipes."""
    return np.array([proposal.recipe.params[name][0] for proposal in proposals])


def closeness(goal: Sequence[float], name: str = "weights") -> Callable[[Recipe], float]:
    """Return a score in (0, 1] that is 1 where a parameter's only row is the goal."""

    def score(recipe: Recipe) -> float:
        return float(np.exp(-np.square(recipe.params[name][0] - np.array(goal)).sum()))

    return score
