"""Nevergrad's optimizers behind ask / tell, and the CMA-ES preset.

Losses (lower is better) exist only in here: loss = -(weighted mean of the objectives).
Nevergrad is imported when an algorithm is made, not with this module: it takes seconds.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import random
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.algorithms.algorithm import config_name, require_dimensions, search_algorithm
from evomerge.algorithms.pending import Pending
from evomerge.core.arrays import FloatArray
from evomerge.core.candidate import Evaluation, Proposal
from evomerge.core.choice_space import Space
from evomerge.core.feasibility import Feasibility
from evomerge.core.layer_sequence_space import LayerSequenceSpace
from evomerge.core.objective import Objectives, mixture
from evomerge.errors import ConfigError, UnknownNameError, nearest

INITIAL_SIGMA = 1.0 / 6.0  # of the unit cube, as in mergekit-evolve and optuna's CMA-ES
DIAGONAL_ABOVE = 100  # dimensions from which a full covariance matrix cannot be learnt in time


# Found by driving every optimizer of nevergrad 1.0.12 with four evaluations in flight.
UNUSABLE = {
    "AXP": "needs the package ax",
    "BAR4": "divides by zero",
    "DS9": "is serial inside",
    "FCMA": "needs the package fcmaes",
    "FCMAp13": "needs the package fcmaes",
    "FCMAs03": "needs the package fcmaes",
    "MetaModelDSproba": "is serial inside",
    "MultiDS": "divides by zero",
    "ParaPortfolio": "waits for ever",
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep nevergrad's advice about its own settings out of the user's warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class PrivateGlobalStreams:
    """Stands in for NumPy's and Python's global random streams while nevergrad runs.

    A few dozen of its optimizers draw from the global streams. Within `with`, those are seeded
    streams of our own, which go on where the last block stopped; afterwards the process's own
    are back as they were. So every optimizer replays, and none disturbs anyone else.
    """

    def __init__(self, seed: int) -> None:
        """Args: seed: of both streams."""
        self._numpy: Any = np.random.RandomState(seed).get_state()
        self._python: Any = random.Random(seed).getstate()

    def _swap(self) -> None:
        numpy, python = np.random.get_state(), random.getstate()  # noqa: NPY002
        np.random.set_state(self._numpy)  # noqa: NPY002
        random.setstate(self._python)
        self._numpy, self._python = numpy, python

    def __enter__(self) -> None:
        """Put our streams in place."""
        self._swap()

    def __exit__(self, *exception: object) -> None:
        """Put the process's streams back, and keep the state of ours."""
        self._swap()


def _nevergrad() -> Any:
    """Import and return nevergrad, and pycma with it: importing them draws random numbers."""
    if "nevergrad" not in sys.modules or "cma" not in sys.modules:
        with _quiet(), PrivateGlobalStreams(0):
            importlib.import_module("nevergrad")
            importlib.import_module("cma")
    return sys.modules["nevergrad"]


def optimizer_class(name: str) -> Any:
    """Return a registered nevergrad optimizer that can be told in any order.

    Raises:
        UnknownNameError: Nevergrad has no such optimizer; names the nearest.
        ConfigError: It has, but only for one evaluation after the other, or broken.
    """
    registry = _nevergrad().optimizers.registry
    if name not in registry:
        raise UnknownNameError(
            f"algorithm.optimizer: nevergrad has no optimizer {name!r}.{nearest(name, registry)} "
            "All are listed in nevergrad.optimizers.registry; CMA, DE, PSO and OnePlusOne are "
            "good first choices."
        )
    found = registry[name]
    if name in UNUSABLE:
        raise ConfigError(
            f"algorithm.optimizer: nevergrad's {name!r} cannot be used, it {UNUSABLE[name]}. "
            "Use CMA, DE, PSO, TBPSA or OnePlusOne instead."
        )
    if found.no_parallelization or found.recast:
        raise ConfigError(
            f"algorithm.optimizer: nevergrad's {name!r} can only score one candidate after the "
            "other, in order. Use CMA, DE, PSO, TBPSA or OnePlusOne instead."
        )
    return found


@dataclass(kw_only=True)
class NevergradAlgorithm:
    """What all algorithms on top of nevergrad share.

    Several objectives are reduced to their weighted mean. What misses a constraint gets the
    highest loss so far plus the sum of the misses. Founders that the search space can express are
    told as they come, where the optimizer accepts points it did not ask for. A searched
    merge method stays the largest of some numbers (`ChoiceSpace`): nevergrad's own `Choice` draws
    the method at random at every ask, so that a vector would not say which recipe was scored.

    Attributes:
        num_workers: Evaluations in flight that the optimizer plans for (a larger population
            in CMA); any number may really be in flight. Nevergrad is told of at least two, or
            NGOpt and its kin choose optimizers that stall unless each result is awaited.
        budget_hint: Evaluations the optimizer plans for (NGOpt chooses by it); None if unknown.
        weights: Objective -> weight in the mean; None weighs all alike, objectives left out
            count for nothing.
    """

    num_workers: int = 1
    budget_hint: int | None = None
    weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that cannot work.

        Raises:
            ConfigError: See `num_workers` and `budget_hint`.
        """
        if self.num_workers < 1:
            raise ConfigError(f"algorithm.num_workers is {self.num_workers}, must be at least 1")
        if self.budget_hint is not None and self.budget_hint < 1:
            raise ConfigError(f"algorithm.budget_hint is {self.budget_hint}, must be at least 1")

    def _optimizer_for(self, dimension: int) -> str:
        raise NotImplementedError

    def _sigma(self) -> float:
        """Return the standard deviation that nevergrad is told of."""
        return INITIAL_SIGMA

    def start(self, space: Space, objectives: Objectives, rng: np.random.Generator) -> None:
        """Begin a run.

        Raises:
            ConfigError: Nothing is searched, a weight names no objective, or the optimizer
                refuses these dimensions, budget or number of workers.
        """
        require_dimensions(space, config_name(self))
        self._space, self._objectives = space, objectives
        self._mixture = mixture(self.weights, objectives, "algorithm.weights")
        self._pending: Pending[Any] = Pending()
        self._worst: float | None = None
        self._feasibility = Feasibility(objectives.constraints)
        self._highest = -math.inf
        self._name = self._optimizer_for(space.dimension)
        seed = int(rng.integers(2**32))
        self._probe(seed)
        self._streams = PrivateGlobalStreams(seed)
        with _quiet(), self._streams:
            self._engine = self._make_engine(seed)

    def _make_engine(self, seed: int) -> Any:
        array = _nevergrad().p.Array(init=self._space.initial())
        # First of all: nevergrad seeds itself from the global stream when this is not set.
        array.random_state = np.random.RandomState(seed)
        array = array.set_bounds(0.0, 1.0).set_mutation(sigma=self._sigma())
        return optimizer_class(self._name)(
            parametrization=array,
            budget=self.budget_hint,
            num_workers=max(self.num_workers, 2),
        )

    def _probe(self, seed: int) -> None:
        """Raise ConfigError when a throw-away optimizer cannot be made and asked once."""
        try:
            with _quiet(), PrivateGlobalStreams(seed):
                self._make_engine(seed).ask()
        except Exception as error:  # a hundred optimizers, as many ways to refuse
            hint = (
                "" if self.budget_hint else " Many optimizers need it: set it to the run's budget."
            )
            raise ConfigError(
                f"nevergrad's {self._name!r} refuses {self._space.dimension} dimensions with "
                f"budget_hint={self.budget_hint}, num_workers={self.num_workers} "
                f"({type(error).__name__}: {error}).{hint}"
            ) from error

    def ask(self) -> Proposal:
        """Return the optimizer's next point. Never waits.

        Raises:
            ConfigError: The optimizer broke, for example past its budget.
        """
        try:
            with _quiet(), self._streams:
                asked = self._engine.ask()
        except Exception as error:
            raise ConfigError(
                f"nevergrad's {self._name!r} broke at proposal {self._engine.num_ask + 1} with "
                f"budget_hint={self.budget_hint} ({type(error).__name__}: {error}). Set "
                "budget_hint to the run's budget, or choose another optimizer."
            ) from error
        recipe = self._space.decode(np.asarray(asked.value))
        self._pending.put(recipe, asked)
        return Proposal(recipe, origin=self._engine.name)

    def tell(self, evaluation: Evaluation) -> None:
        """Pass on the loss; a failure counts as worse than everything told so far."""
        asked = self._pending.pop(evaluation.candidate.recipe)
        if evaluation.error is not None:
            if asked is not None:
                self._tell_engine(asked, self._bad_loss())
            return
        loss = self._loss(evaluation)
        self._worst = loss if self._worst is None else max(self._worst, loss)
        if asked is not None:
            self._tell_engine(asked, loss)
            return
        vector = self._space.encode(evaluation.candidate.recipe)
        if vector is not None:
            self._tell_founder(vector, loss)

    def _loss(self, evaluation: Evaluation) -> float:
        loss = -float(self._mixture @ self._objectives.values(evaluation))
        measured = self._feasibility.measure(evaluation)
        self._feasibility.learn(evaluation.candidate.origin, measured)
        violation = self._feasibility.violation(measured)
        # Among those that miss a bound the miss alone decides: a sum with the loss could cancel.
        self._highest = max(self._highest, loss)
        return self._highest + violation if violation > 0.0 else loss

    def _bad_loss(self) -> float:
        # Finite and near the others: model-based optimizers would be thrown by an outlier.
        return 1e3 if self._worst is None else self._worst + max(1.0, abs(self._worst))

    def _tell_engine(self, asked: Any, loss: float) -> None:
        with _quiet(), self._streams:
            self._engine.tell(asked, loss)

    def _tell_founder(self, vector: FloatArray, loss: float) -> None:
        with _quiet(), self._streams:
            point = self._engine.parametrization.spawn_child(new_value=vector)
            with contextlib.suppress(_nevergrad().errors.TellNotAskedNotSupportedError):
                self._engine.tell(point, loss)


@search_algorithm("nevergrad")
@dataclass(kw_only=True)
class Nevergrad(NevergradAlgorithm):
    """Any optimizer of nevergrad's registry that takes results in any order.

    Source: Bennet et al. 2021, nevergrad 1.0, its `optimizers.registry`; spec: algorithms.md §7.
    Differs from using it directly: global random streams are stood in for by seeded ones, and a
    failure is told as a loss a little above the worst.

    Attributes:
        optimizer: Name in `nevergrad.optimizers.registry`.
    """

    optimizer: str = "CMA"

    def __post_init__(self) -> None:
        """Refuse optimizers that do not exist, are serial or are broken.

        Raises:
            ConfigError: See `optimizer` and `NevergradAlgorithm`.
        """
        super().__post_init__()
        optimizer_class(self.optimizer)

    def _optimizer_for(self, dimension: int) -> str:
        if dimension == 1 and "CMA" in self.optimizer:
            raise ConfigError(
                f"algorithm.optimizer: {self.optimizer!r} needs at least two searched numbers, "
                "the search space has one. Use OnePlusOne or DE."
            )
        return self.optimizer


@search_algorithm("cma_es")
@dataclass(kw_only=True)
class CmaEs(NevergradAlgorithm):
    """CMA-ES: nevergrad's CMA, or DiagonalCMA above 100 dimensions.

    With a single searched number CMA-ES has no covariance to adapt; OnePlusOne stands in.

    Source: Hansen 2016 (the CMA evolution strategy, a tutorial), arXiv:1604.00772, by pycma.
    Differs from mergekit-evolve, which runs it too: between bounds, not folded at them; a smaller
    first step; a diagonal covariance above 100 numbers (Ros & Hansen 2008, sep-CMA-ES).

    Attributes:
        initial_sigma: Standard deviation of the first points in the unit cube. None: 1/6 for layer
            sequences, whose indicators begin two of them from their threshold; else 0.05 below 18
            dimensions and 0.025 from there, what nevergrad makes of 1/6 between bounds.
    """

    initial_sigma: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that cannot work.

        Raises:
            ConfigError: See `initial_sigma` and `NevergradAlgorithm`.
        """
        super().__post_init__()
        if self.initial_sigma is not None and not 0.0 < self.initial_sigma <= 1.0:
            raise ConfigError(
                f"algorithm.initial_sigma is {self.initial_sigma:g}, must be above 0, at most 1"
            )

    def _sigma(self) -> float:
        wanted = self.initial_sigma
        if wanted is None:
            if not isinstance(self._space, LayerSequenceSpace):
                return INITIAL_SIGMA
            wanted = INITIAL_SIGMA
        # Nevergrad's CMA multiplies it by this where everything has bounds.
        return wanted / (0.3 if self._space.dimension < 18 else 0.15)

    def _optimizer_for(self, dimension: int) -> str:
        if dimension == 1:
            return "OnePlusOne"
        return "DiagonalCMA" if dimension > DIAGONAL_ABOVE else "CMA"
