"""M2N2: natural niches in the span of the sources."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar, get_args

import numpy as np

from evomerge.algorithms.algorithm import require_span, search_algorithm
from evomerge.algorithms.niche_search import Lineage, NicheSearch
from evomerge.algorithms.noisy_lineage import MAX_NOISE, NoisyLineage
from evomerge.core.arrays import FloatArray, IntArray, ScoreArray
from evomerge.core.candidate import Evaluation, Proposal, split_scores
from evomerge.core.choice_space import Space
from evomerge.core.linear_span import (
    LinearSpan,
    Segments,
    on_common_breaks,
    slerp_weights,
    split_crossover,
)
from evomerge.core.objective import Objectives
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError

CLONE_TOLERANCE = 1e-12  # between coefficients, which are of order 1

AngleScope = Literal["global", "segment", "tensor"]
Genome = TypeVar("Genome")


class RecipeLineage(Lineage[Genome], Protocol[Genome]):
    """A lineage whose members are recipes."""

    def recipe(self, genome: Genome) -> Recipe:
        """Return the recipe that computes a member."""
        ...

    def member(self, recipe: Recipe) -> Genome | None:
        """Return a recipe as a member; None when it cannot be one."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class SpanLineage:
    """SLERP with a split point, in coefficients over the sources: no weights are touched.

    Attributes:
        span: Geometry of the sources.
        split_point: Draw a split; w applies before it and 1 - w after it. Else w everywhere.
        angle_scope: Measure the parents' angle over the whole vector, on each side, or in each
            tensor.
        max_segments: Children with more segments have their faintest breaks joined.
    """

    span: LinearSpan
    split_point: bool = True
    angle_scope: AngleScope = "global"
    max_segments: int = 256

    def cross(self, a: Segments, b: Segments, rng: np.random.Generator) -> Segments:
        """Return slerp_w(a, b) before the split and slerp_{1-w}(a, b) after it.

        A clone of its mate returns `a` itself, so that its child is known for a duplicate.
        """
        end = self.span.n_elements
        w = rng.random()
        split = self.span.snap(int(rng.integers(end))) if self.split_point else end
        x, y = on_common_breaks(a, b, split)
        if np.abs(x.coefficients - y.coefficients).max() <= CLONE_TOLERANCE:
            return a
        if self.angle_scope == "tensor":
            child = self.span.crossed_by_tensor(x, y, split, w)
            return self.span.simplify(child, self.max_segments)
        if self.angle_scope == "global" or split in (0, end):
            before = after = self.span.angle(x, y)
        else:
            before = self.span.angle(x, y, 0, split)
            after = self.span.angle(x, y, split, end)
        left, right = slerp_weights(w, before), slerp_weights(1.0 - w, after)
        child = split_crossover(x, y, split, left, right)
        return self.span.simplify(child, self.max_segments)

    def warm_up(self, rng: np.random.Generator) -> Segments:
        """Return a child of two different sources."""
        k = len(self.span.sources)
        first, second = rng.permutation(k)[:2] if k > 1 else (0, 0)
        return self.cross(self.span.single(int(first)), self.span.single(int(second)), rng)

    def key(self, genome: Segments) -> bytes:
        """Return a digest of breaks and coefficients."""
        hasher = hashlib.blake2b(genome.breaks.tobytes(), digest_size=16)
        hasher.update(genome.coefficients.tobytes())
        return hasher.digest()

    def recipe(self, genome: Segments) -> Recipe:
        """Return the recipe that computes a member."""
        return self.span.recipe(genome)

    def member(self, recipe: Recipe) -> Segments | None:
        """Return a recipe as a member; None when it is not in the span."""
        return self.span.segments(recipe)


@search_algorithm("m2n2")
@dataclass(kw_only=True)
class M2N2:
    """Natural niches: share each example's reward, mate complements, split anywhere.

    Members are linear recipes with segments, exact in float64 at any depth of ancestry. Parents
    of the first children are the founders that lie in the span of the sources; others are only
    scored. Evaluations are compared only when they hold the same tasks with as many examples
    as the first one; others stay out of the archive. Negative scores (log-likelihoods) are
    shifted per example so that the archive's worst is 0. Never waits: with fewer than two
    members it crosses sources.

    Source: Abrantes et al. 2025 (M2N2), arXiv:2508.16204; spec: algorithms.md §1.
    Differs from the reference code: empty slots are filled before any member is dropped;
    duplicates are redrawn; parents are two different slots.

    Attributes:
        population_size: P, members of the archive.
        alpha: Sharing strength; 0: plain accuracy, 1: every example is shared among its solvers.
        split_point: Cross over at a random element; else one SLERP for the whole model.
        attraction: Choose the second parent for what the first one lacks; else by fitness.
        angle_scope: SLERP's angle of the whole vectors ("global", as in the reference), of each
            side of the split ("segment"), or of each tensor ("tensor"; every tensor is a
            segment then, so `max_segments` should be above their number).
        capacity: Worth of an example: "auto" is the best score of any member (1 for solved
            0/1 examples); "one" is 1 for all.
        max_segments: Largest number of segments of a recipe. Beyond it a child's faintest
            breaks are joined; the recipe still says exactly what was scored. With `mutation` none
            is: see `max_noise`.
        warm_up: So many proposals are children of two random sources before members breed
            (the paper's warm-up; its code has none).
        mutation: Standard deviation of the noise that is added to every weight of a child, in the
            unit of the weights: evolution from scratch, where the paper has 0.01. 0: none, as
            it should be for models that know something. Recipes then name the seeds of their
            noise, and every merge makes it anew.
        max_noise: Most terms of a recipe beside the models, at most 32, as each costs a pass over
            all weights per merge: seeds of noise, and ancestors. A child that would have more terms
            (or segments) is one of its two parents, as ancestors that are merged once and then
            read like models: three terms, and nothing is lost.
    """

    needs_span: ClassVar[bool] = True  # the composition root then computes `space.span`

    population_size: int = 20
    alpha: float = 1.0
    split_point: bool = True
    attraction: bool = True
    angle_scope: AngleScope = "global"
    capacity: Literal["auto", "one"] = "auto"
    max_segments: int = 256
    warm_up: int = 0
    mutation: float = 0.0
    max_noise: int = MAX_NOISE

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ConfigError: A field is out of range.
        """
        limits = (
            ("population_size", 2), ("alpha", 0), ("max_segments", 2), ("warm_up", 0),
            ("mutation", 0), ("max_noise", 1),
        )  # fmt: skip
        for name, low in limits:
            value = getattr(self, name)
            if not low <= value < float("inf"):
                raise ConfigError(f"algorithm.{name} is {value}, must be at least {low}")
        if self.max_noise > MAX_NOISE:
            raise ConfigError(
                f"algorithm.max_noise is {self.max_noise}, must be at most {MAX_NOISE}: every "
                "term is a pass over all weights, and fewer lose nothing"
            )
        choices = (("angle_scope", get_args(AngleScope)), ("capacity", ("auto", "one")))
        for name, known in choices:
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"algorithm.{name} is {getattr(self, name)!r}, must be one of {known}"
                )
        if self.mutation > 0.0 and self.angle_scope == "tensor":
            raise ConfigError(
                "algorithm.angle_scope: 'tensor' goes with mutation: 0 only, use 'segment'"
            )

    def start(self, space: Space, objectives: Objectives, rng: np.random.Generator) -> None:
        """Begin a run.

        Raises:
            ConfigError: The space does not know the span of its sources.
        """
        self._objectives = objectives
        self._lineage = self._make_lineage(require_span(space, "m2n2"))
        self._search: NicheSearch[Any] = NicheSearch(
            self._lineage,
            rng,
            population_size=self.population_size,
            alpha=self.alpha,
            use_attraction=self.attraction,
            capacity=self.capacity,
            warm_up=self.warm_up,
        )
        self._examples: tuple[tuple[str, int], ...] | None = None
        self._champion: Evaluation | None = None
        self._champion_value = -np.inf

    def _make_lineage(self, span: LinearSpan) -> RecipeLineage[Any]:
        if self.mutation > 0.0:
            return NoisyLineage(
                span=span,
                sigma=self.mutation,
                max_noise=self.max_noise,
                split_point=self.split_point,
                is_global=self.angle_scope == "global",
                max_segments=self.max_segments,
            )
        return SpanLineage(
            span=span,
            split_point=self.split_point,
            angle_scope=self.angle_scope,
            max_segments=self.max_segments,
        )

    @property
    def champion(self) -> Evaluation | None:
        """The evaluation with the best mean of objectives so far.

        Kept apart from the archive, which may drop it: niches reward rare skills, not means.
        """
        return self._champion

    @property
    def member_ids(self) -> tuple[int, ...]:
        """Candidate ids of the archive, by slot."""
        return self._search.ids

    def archive_scores(self) -> FloatArray:
        """Return (P, N) scores of the archive's members, by slot."""
        return self._search.archive_scores()

    def example_order(self, proposal: Proposal) -> IntArray | None:
        """Return in which order to score a child's examples, see `early_rejection`."""
        return self._search.example_order(proposal.parents)

    def rejects(self, examples: IntArray, scores: ScoreArray) -> bool:
        """Return whether a child can neither enter the archive nor become the champion.

        Args:
            examples: (n,) examples scored so far, as positions in `Evaluation.flat_scores`.
            scores: (n,) their scores; those still to come must lie in [0, 1].
        """
        if self._champion is None or self._examples is None:
            return False
        if not self._search.rejects(examples, scores):
            return False
        sizes = dict(self._examples)
        hoped = np.ones(sum(sizes.values()), np.float32)
        hoped[examples] = scores
        best = Evaluation(self._champion.candidate, split_scores(hoped, sizes))
        return float(self._objectives.values(best).mean()) <= self._champion_value

    def ask(self) -> Proposal:
        """Return a child of two members, or of two sources while there are too few."""
        offspring = self._search.ask()
        origin = "crossover" if offspring.parents else "warm-up"
        return Proposal(self._lineage.recipe(offspring.genome), offspring.parents, origin)

    def tell(self, evaluation: Evaluation) -> None:
        """Offer a scored candidate to the archive; failures leave no trace."""
        if evaluation.error is not None:
            return
        examples = tuple((task, len(evaluation.scores[task])) for task in sorted(evaluation.scores))
        if self._examples is None:
            self._examples = examples
        if examples != self._examples:
            return
        values = self._objectives.values(evaluation)
        value = float(np.add.reduce(values)) / len(values)
        if value > self._champion_value:
            self._champion, self._champion_value = evaluation, value
        member = self._lineage.member(evaluation.candidate.recipe)
        if member is not None:
            self._search.mark_proposed(member)  # a founder, or another run's candidate
            self._search.tell(member, evaluation.flat_scores(), evaluation.candidate.id)
