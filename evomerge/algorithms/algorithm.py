"""SearchAlgorithm: proposes recipes and learns from their scores.

An algorithm is a dataclass whose fields are its config keys, registered with
`@search_algorithm("name")`. The loop owns founders, ids, the journal and retries; an
algorithm is a pure function of its seed and of the order of `ask` and `tell` calls.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from evomerge.core.candidate import Evaluation, Proposal
from evomerge.core.choice_space import Space
from evomerge.core.linear_span import LinearSpan
from evomerge.core.objective import Objectives
from evomerge.core.pareto_surrogate import ParetoSurrogate
from evomerge.errors import ConfigError, UnknownNameError
from evomerge.registry import Registry

search_algorithms = Registry("search algorithm", "evomerge.search_algorithms")
search_algorithm = search_algorithms.register


class SearchAlgorithm(Protocol):
    """Ask / tell, in any order of tells, each evaluation told once."""

    def start(self, space: Space, objectives: Objectives, rng: np.random.Generator) -> None:
        """Begin a run (or its replay). Called once, before anything else."""
        ...

    def ask(self) -> Proposal | None:
        """Return the next proposal, or None to wait for results.

        Returning None leaves the state and the random stream untouched. An algorithm must
        not wait when no evaluation is outstanding.
        """
        ...

    def tell(self, evaluation: Evaluation) -> None:
        """Learn from one evaluation: asked by this algorithm, or a founder (never asked).

        A failed evaluation has `error` set and no scores.
        """
        ...


@runtime_checkable
class HasSurrogate(Protocol):
    """A search algorithm that can say what it expects of points it never scored."""

    def surrogate(self) -> ParetoSurrogate | None:
        """Return surrogates of all that was told; None before there is enough."""
        ...


def config_name(algorithm: object) -> str:
    """Return the name a config knows an algorithm by; its class's where it is not registered."""
    try:
        return search_algorithms.name_of(type(algorithm))
    except UnknownNameError:
        return type(algorithm).__name__


def require_span(space: Space, name: str) -> LinearSpan:
    """Return the span of the sources, for algorithms that breed linear combinations.

    Raises:
        ConfigError: The space does not know it; says what to do.
    """
    if space.span is None:
        raise ConfigError(
            f"algorithm {name!r} breeds linear combinations of the models, which operator "
            f"{' or '.join(space.methods)!r} does not give. Use a linear operator (linear or "
            "task_arithmetic), or another algorithm, for example cma_es or nsga2."
        )
    return space.span


def require_dimensions(space: Space, name: str) -> None:
    """Refuse a space without a searched parameter.

    Raises:
        ConfigError: `space.dimension` is 0; says what to do.
    """
    if space.dimension == 0:
        raise ConfigError(
            f"algorithm {name!r} has nothing to search: every parameter of operator "
            f"{' or '.join(space.methods)!r} is fixed. Leave at least one out, or give it a range."
        )
