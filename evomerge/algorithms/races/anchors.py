"""anchors: scores every candidate on the same few examples and guesses the others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from evomerge.algorithms.algorithm import SearchAlgorithm
from evomerge.algorithms.races.race import Racing, Runner, race
from evomerge.core.anchor_model import DIMENSIONS, ESTIMATORS, PICKS, AnchorModel, pick_anchors
from evomerge.core.anchors import Anchors
from evomerge.core.arrays import FloatArray
from evomerge.core.candidate import Evaluation, Proposal, split_scores
from evomerge.core.choice_space import Space
from evomerge.core.feasibility import Feasibility
from evomerge.core.objective import Objectives, mixture
from evomerge.errors import ConfigError, nearest
from evomerge.seeding import generator

_MOST_PARENTS = 32  # a warm start may have hundreds of founders
_KEPT = 256  # full scores beside the parents', the latest: they are held in memory
_REFIT_GROWTH = 1.25  # of the number of full scores, from one fit to the next


@race("anchors")
@dataclass(frozen=True, kw_only=True)
class AnchorRace:
    """Scores candidates on n anchors; what it tells of the other examples comes from a model.

    The founders, and `warm_up` candidates, are scored in full. Then the anchors are picked, once,
    and a model of the scores is fitted, again and again as more candidates are fully scored.
    Whenever as many examples were spent as `champion_every` full evaluations take, the candidate
    with the best estimate since then is scored in full: only what is gets onto the front.

    Not exact: the algorithm is told estimates, which rank candidates better than they value them,
    and is told of a champion a second time.

    Source: algorithms.md §6; MERGE3, [2502.10436](https://arxiv.org/abs/2502.10436).
    Differs from it: item parameters come from this run's own full scores and are refitted, and
    champions are scored in full while the search goes on.

    Attributes:
        n: How many anchors, of all tasks together.
        pick: "random", "clustered" (by the scores known so far), "item_clusters" (by the
            parameters of an item response model) or "entropy" (more often those on which models
            disagree). Clusters of the founders' scores alone were measured to rank worse than
            random; with a `warm_up` of 20, better on one of two problems (benchmarks/irt.py).
        warm_up: Candidates scored in full before anchors are picked.
        estimator: "weighted" (the anchors' weighted mean; the means of the models known say which
            examples are hard), "mp_irt" (a mixture of the founders' abilities) or "gmp_irt" (half
            of each).
        dimensions: Abilities of the item response model.
        champion_every: Full evaluations' worth of examples between two champions.
    """

    n: int = 50
    pick: str = "random"
    warm_up: int = 0
    estimator: str = "gmp_irt"
    dimensions: int = DIMENSIONS
    champion_every: float = 3.0

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ConfigError: A field is out of range.
        """
        for name, known in (("pick", PICKS), ("estimator", tuple(ESTIMATORS))):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(
                    f"racing.{name}: there is no {value!r}.{nearest(value, known)} "
                    f"Known: {', '.join(known)}."
                )
        if self.n < 1 or self.dimensions < 1 or self.warm_up < 0 or self.champion_every <= 0.0:
            raise ConfigError(
                "racing: n and dimensions must be at least 1, warm_up 0, champion_every more than 0"
            )

    def around(self, algorithm: SearchAlgorithm) -> SearchAlgorithm:
        """Return the algorithm with its candidates scored on anchors."""
        return AnchorRacing(algorithm, self)


class AnchorRacing(Racing):
    """See `AnchorRace`."""

    def __init__(self, inner: SearchAlgorithm, settings: AnchorRace) -> None:
        """Args: settings: of the race."""
        super().__init__(inner, settings.n, growth=2.0)
        self._settings = settings

    def start(self, space: Space, objectives: Objectives, rng: np.random.Generator) -> None:
        """Begin a run."""
        super().start(space, objectives, rng)
        weights = getattr(self.inner, "weights", None)
        self._mixture = mixture(weights, objectives, "algorithm.weights")
        self._feasibility = Feasibility(objectives.constraints)
        n_founders = max(2, len(space.founders))
        self._n_parents = min(n_founders, _MOST_PARENTS)
        self._n_first = n_founders + self._settings.warm_up  # full scores to pick anchors from
        self._rows: dict[str, FloatArray] = {}  # recipe digest -> (N,) full scores, as told
        self._anchors: Anchors | None = None
        self._model: AnchorModel | None = None
        self._n_rows = 0  # that were ever among them
        self._n_fitted = 0  # of these, when the model was fitted
        self._spent = 0  # examples since the last champion
        self._hopeful: tuple[tuple[float, float], Runner] | None = None  # best since then
        self._crowned: list[Runner] = []

    def ask(self) -> Proposal | None:
        """Return a champion's other examples, or a new candidate's anchors."""
        if self._crowned:
            return self._asking_rest(self._crowned.pop(), "champion")
        proposal = self.inner.ask()
        if proposal is None or self._anchors is None:
            return proposal
        picked = self._anchors.positions
        order = np.concatenate([picked, np.setdiff1d(np.arange(self._n_examples), picked)])
        return self._asking(Runner(proposal, order))

    def tell(self, evaluation: Evaluation) -> None:
        """Pass on what is scored in full; guess the other scores of the rest."""
        self._learn_sizes(evaluation)
        runner = self._runner_of(evaluation)
        if self._anchors is not None:
            asked = evaluation.candidate.examples
            self._spent += self._n_examples if asked is None else len(asked)
        if evaluation.error is None and evaluation.examples is None:
            self._take_in(evaluation)
        if runner is None or evaluation.error is not None or evaluation.examples is None:
            self.inner.tell(evaluation)
        else:
            self._guess(runner, evaluation)
        if self._hopeful and self._spent >= self._settings.champion_every * self._n_examples:
            self._crowned.append(self._hopeful[1])
            self._hopeful, self._spent = None, 0

    def _take_in(self, evaluation: Evaluation) -> None:
        """Keep a full row of scores; pick the anchors when there are enough."""
        measured = self._feasibility.measure(evaluation)
        self._feasibility.learn(evaluation.candidate.origin, measured)
        digest = evaluation.candidate.recipe.digest()
        self._n_rows += digest not in self._rows
        self._rows[digest] = evaluation.flat_scores().astype(np.float64)
        if len(self._rows) > self._n_parents + _KEPT:
            del self._rows[list(self._rows)[self._n_parents]]
        if self._anchors is None and self._n_rows >= self._n_first:
            n = min(self._first, self._n_examples)
            rows = np.stack(list(self._rows.values()))
            rng = generator(0, "anchors")
            self._anchors = pick_anchors(self._settings.pick, rows, self._sizes, n, rng)
            self._first = len(self._anchors.positions)

    def _guess(self, runner: Runner, evaluation: Evaluation) -> None:
        """Tell what a candidate that is scored on the anchors may be worth."""
        assert self._anchors is not None
        row = evaluation.flat_scores().astype(np.float64)
        full = self._fitted().complete(self._anchors, row).astype(np.float32)
        guess = replace(evaluation, scores=split_scores(full, self._sizes))
        violation = self._feasibility.violation(self._feasibility.measure(guess))
        merit = (-violation, float(self._mixture @ self._objectives.values(guess)))
        if self._hopeful is None or merit > self._hopeful[0]:
            self._hopeful = merit, runner
        self.inner.tell(guess)

    def _fitted(self) -> AnchorModel:
        """Return a model that knows most of the full scores."""
        if self._model is None or self._n_rows >= _REFIT_GROWTH * self._n_fitted:
            self._n_fitted = self._n_rows
            self._model = AnchorModel.fit(
                np.stack(list(self._rows.values())),
                self._n_parents,
                self._sizes,
                self._settings.estimator,
                self._settings.dimensions,
            )
        return self._model
