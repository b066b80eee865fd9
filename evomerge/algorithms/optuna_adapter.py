"""Optuna's samplers behind ask / tell, with the NSGA-II and TPE presets.

Optuna is imported inside the functions. The study lives in memory: the journal is the only
state of a run, and replaying it rebuilds the study.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evomerge.algorithms.algorithm import config_name, require_dimensions, search_algorithm
from evomerge.algorithms.optuna_parameters import OptunaParameters
from evomerge.algorithms.pending import Pending
from evomerge.core.arrays import FloatArray
from evomerge.core.candidate import Evaluation, Proposal
from evomerge.core.choice_space import Space
from evomerge.core.feasibility import Feasibility
from evomerge.core.objective import Objectives
from evomerge.errors import ConfigError, UnknownNameError, nearest

# They enumerate or wrap other samplers: they need arguments a config cannot give.
UNSUITABLE = ("BaseSampler", "BaseGASampler", "GridSampler", "BruteForceSampler",
              "PartialFixedSampler")  # fmt: skip


# Arguments of samplers that come from elsewhere in the config.
DECIDED = {
    "seed": " The run's seed decides it.",
    "constraints_func": " The config's `constraints:` decide it.",
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence optuna's log lines and its notes on experimental arguments, here only."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)


def sampler_class(name: str) -> Any:
    """Return the class `optuna.samplers.<name>`.

    Raises:
        UnknownNameError: Optuna has no such sampler; names the nearest.
        ConfigError: It has, but it needs more than numbers in [0, 1].
    """
    import optuna

    known = [item for item in dir(optuna.samplers) if item.endswith("Sampler")]
    usable = [item for item in known if item not in UNSUITABLE]
    if name not in known:
        raise UnknownNameError(
            f"algorithm.sampler: optuna has no sampler {name!r}.{nearest(name, usable)} "
            f"Known: {', '.join(usable)}."
        )
    if name in UNSUITABLE:
        raise ConfigError(
            f"algorithm.sampler: optuna's {name!r} cannot search a continuous space by itself. "
            f"Use one of {', '.join(usable)}."
        )
    if name == "CmaEsSampler" and importlib.util.find_spec("cmaes") is None:
        raise ConfigError(
            "algorithm.sampler: optuna's CmaEsSampler needs the package cmaes. "
            "Install it, or use algorithm cma_es."
        )
    return getattr(optuna.samplers, name)


class OptunaAlgorithm:
    """What all algorithms on top of optuna share.

    Founders that the search space can express become trials as they come. Samplers that know of
    constraints (NSGA-II and III, TPE, GP) are told how far each bound is missed; a bound that is
    not known yet counts as kept. Where the merge method is searched it is a categorical parameter;
    see `OptunaParameters`.
    """

    def _choice(self) -> tuple[str, dict[str, Any]]:
        """Return the sampler's class name and its keywords but for the seed."""
        raise NotImplementedError

    def start(self, space: Space, objectives: Objectives, rng: np.random.Generator) -> None:
        """Begin a run.

        Raises:
            ConfigError: Nothing is searched, or the sampler refuses its options.
        """
        name = config_name(self)
        require_dimensions(space, name)
        self._space, self._objectives = space, objectives
        self._pending: Pending[Any] = Pending()
        self._sampler, options = self._choice()
        self._parameters = OptunaParameters(space, self._sampler)
        keywords = self._parameters.options_for(options)
        made_by = sampler_class(self._sampler)
        accepted = inspect.signature(made_by).parameters
        if "seed" in accepted:
            keywords = keywords | {"seed": int(rng.integers(2**32))}
        self._feasibility = Feasibility(objectives.constraints)
        self._gaps: dict[int, list[float]] = {}
        if objectives.constraints and "constraints_func" in accepted:
            keywords = keywords | {"constraints_func": lambda trial: self._gaps[trial.number]}
        with _quiet():
            try:
                # A throw-away study says now what would otherwise come after the founders.
                self._parameters.ask(self._make_study(made_by(**keywords)))
            except (TypeError, ValueError, ImportError) as error:
                raise ConfigError(
                    f"algorithm {name!r}: optuna's {self._sampler} refuses {len(objectives)} "
                    f"objective(s) with {keywords}: {error} Use NSGAIISampler or TPESampler."
                ) from error
            self._study = self._make_study(made_by(**keywords))

    def _make_study(self, sampler: Any) -> Any:
        import optuna

        return optuna.create_study(
            directions=["maximize"] * len(self._objectives),
            sampler=sampler,
            pruner=optuna.pruners.NopPruner(),
        )

    def ask(self) -> Proposal:
        """Return the sampler's next point. Never waits."""
        trial, vector = self._next_trial()
        recipe = self._space.decode(vector)
        self._pending.put(recipe, trial)
        return Proposal(recipe, origin=self._sampler)

    def _next_trial(self) -> tuple[Any, FloatArray]:
        with _quiet():
            return self._parameters.ask(self._study)

    def tell(self, evaluation: Evaluation) -> None:
        """Pass on the objective values; failures become failed trials, which samplers skip."""
        import optuna

        measured = None
        if evaluation.error is None:
            measured = self._feasibility.measure(evaluation)
            self._feasibility.learn(evaluation.candidate.origin, measured)
        trial = self._pending.pop(evaluation.candidate.recipe)
        if trial is None:
            vector = self._space.encode(evaluation.candidate.recipe)
            if vector is None or measured is None:
                return
            trial = self._founder_trial(vector)
        with _quiet():
            if measured is None:
                self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                self._gaps[trial.number] = self._feasibility.gaps(measured).tolist()
                values = self._objectives.values(evaluation)
                self._study.tell(trial, [float(value) for value in values])

    def _founder_trial(self, vector: FloatArray) -> Any:
        import optuna

        with _quiet():
            self._study.enqueue_trial(self._parameters.point(vector))
        trial, _ = self._next_trial()
        sampler = self._study.sampler
        if isinstance(sampler, optuna.samplers.BaseGASampler):
            # Without a generation of their own, genetic samplers would never breed from founders.
            frozen = self._study.get_trials(deepcopy=False)[trial.number]
            sampler.get_trial_generation(self._study, frozen)
        return trial


@search_algorithm("optuna")
@dataclass(kw_only=True)
class Optuna(OptunaAlgorithm):
    """Any optuna sampler; all objectives are maximised together.

    Source: Akiba et al. 2019 (Optuna), arXiv:1907.10902, its `samplers`.
    Differs from using it directly: the study is never stored, a replay of the journal rebuilds it.

    Attributes:
        sampler: Class name in `optuna.samplers`.
        options: Further keyword arguments of that class.
    """

    sampler: str = "TPESampler"
    options: Mapping[str, str | float | int | bool | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse samplers and options that optuna does not have.

        Raises:
            ConfigError: See `sampler` and `options`.
        """
        accepted = list(inspect.signature(sampler_class(self.sampler)).parameters)
        for name in self.options:
            if name not in accepted or name in DECIDED:
                hint = DECIDED.get(name, nearest(name, accepted))
                raise ConfigError(
                    f"algorithm.options.{name} is not an option of optuna's {self.sampler}.{hint}"
                )

    def _choice(self) -> tuple[str, dict[str, Any]]:
        # Without scrambling every seed would give the same points.
        usual = {"scramble": True} if self.sampler == "QMCSampler" else {}
        return self.sampler, usual | dict(self.options)


@search_algorithm("nsga2")
@dataclass(kw_only=True)
class Nsga2(OptunaAlgorithm):
    """NSGA-II: Pareto ranks and crowding over several objectives.

    Source: Deb et al. 2002, doi:10.1109/4235.996017, by optuna's NSGAIISampler.
    Differs from the paper as optuna does: uniform crossover by default, no generation barrier.

    Attributes:
        population_size: Members of a generation.
    """

    population_size: int = 20

    def __post_init__(self) -> None:
        """Refuse a population without pairs.

        Raises:
            ConfigError: See `population_size`.
        """
        if self.population_size < 2:
            raise ConfigError(
                f"algorithm.population_size is {self.population_size}, must be at least 2"
            )

    def _choice(self) -> tuple[str, dict[str, Any]]:
        return "NSGAIISampler", {"population_size": self.population_size}


@search_algorithm("tpe")
@dataclass(kw_only=True)
class Tpe(OptunaAlgorithm):
    """Tree-structured Parzen estimator over all parameters jointly.

    Points in flight count as bad results (constant liar), so that parallel asks spread out.

    Source: Bergstra et al. 2011 (algorithms for hyper-parameter optimization, NeurIPS 24), by
    optuna's TPESampler with `multivariate`.
    Differs from the paper: the joint density of Falkner et al. 2018 (BOHB), arXiv:1807.01774, in
    place of one per parameter.

    Attributes:
        startup_evaluations: Random points before the model is used.
    """

    startup_evaluations: int = 10

    def __post_init__(self) -> None:
        """Refuse a negative start-up.

        Raises:
            ConfigError: See `startup_evaluations`.
        """
        if self.startup_evaluations < 0:
            raise ConfigError(
                f"algorithm.startup_evaluations is {self.startup_evaluations}, must not be negative"
            )

    def _choice(self) -> tuple[str, dict[str, Any]]:
        return "TPESampler", {
            "n_startup_trials": self.startup_evaluations,
            "multivariate": True,
            "constant_liar": True,
        }
