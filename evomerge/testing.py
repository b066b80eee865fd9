"""Conformance suites for extensions: call one from a test of your own package.

`check_search_algorithm` proves that an algorithm can be driven asynchronously and replayed.
`check_evaluator` proves that an evaluator is deterministic and leaves the model as it was.
`check_merge_operator` proves that a merge method is exact at its ends and reproducible.
`check_delta_transform` proves that a transform can be cached and that its experts are on a par.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.algorithms.algorithm import SearchAlgorithm
from evomerge.core.ancestry import is_made
from evomerge.core.arrays import ScoreArray
from evomerge.core.candidate import (
    Candidate,
    Evaluation,
    scored_examples,
    split_scores,
)
from evomerge.core.recipe import Recipe
from evomerge.seeding import generator
from evomerge.testing_problems import LinearProblem, choice_problem, linear_problem

if TYPE_CHECKING:
    from evomerge.evaluation.evaluator import Evaluator
    from evomerge.evaluation.subject import Subject

__all__ = [
    "LinearProblem",
    "check_delta_transform",
    "check_evaluator",
    "check_merge_operator",
    "check_search_algorithm",
    "choice_problem",
    "linear_problem",
]


def check_search_algorithm(
    make: Callable[[], SearchAlgorithm], problem: LinearProblem | None = None
) -> None:
    """Check that an algorithm keeps the contract of `SearchAlgorithm`.

    Founders told unasked and late, results out of order, one in four failing, everything
    failing; equal proposals for equal seeds and on replay from JSON recipes; other proposals for
    other seeds; no waiting when nothing is outstanding, and none that leaves a trace; NumPy's and
    Python's global random streams untouched; parents that exist.

    Args:
        make: Returns a fresh algorithm, the same each time.
        problem: What to search; None for `linear_problem()`. An algorithm that works on vectors
            should also pass with `choice_problem()`.

    Raises:
        AssertionError: A property does not hold; the message says which.
    """
    problem = linear_problem() if problem is None else problem
    np_state, py_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    drive = partial(_drive, make, problem)
    first = drive(seed=1)
    _expect(drive(seed=1) == first, "equal seeds must give equal proposals")
    _expect(
        drive(seed=1, copied=True) == first, "told recipes are copies on replay: match by value"
    )
    _expect(drive(seed=1, extra_asks=2) == first, "an ask that returns None must leave no trace")
    _expect(drive(seed=2) != first, "proposals must depend on the seed")
    drive(seed=3, failures=1.0)
    drive(seed=4, early_asks=3)
    drive(seed=5, failures=0.0, in_flight=1)
    same_np = all(
        np.array_equal(now, before)
        for now, before in zip(np.random.get_state(), np_state, strict=True)  # noqa: NPY002
    )
    _expect(same_np, "numpy's global random stream must stay untouched")
    _expect(random.getstate() == py_state, "Python's global random stream must stay untouched")


def _drive(
    make: Callable[[], SearchAlgorithm],
    problem: LinearProblem,
    *,
    seed: int,
    copied: bool = False,
    failures: float = 0.25,
    in_flight: int = 4,
    early_asks: int = 0,
    extra_asks: int = 0,
    n_evaluations: int = 60,
) -> list[tuple[str, tuple[int, ...]]]:
    """Run a search; return digest and parents of every proposal."""
    algorithm = make()
    algorithm.start(problem.space, problem.objectives, generator(seed, "algorithm"))
    chance = np.random.Generator(np.random.Philox(key=99))  # the same chances for every seed
    seen: list[tuple[str, tuple[int, ...]]] = []
    told: set[int] = set()
    known: dict[str, ScoreArray] = {}
    waiting: list[Candidate] = []

    def ask() -> bool:
        proposal = algorithm.ask()
        if proposal is None:
            _expect(bool(waiting), "ask returned None although nothing is outstanding")
            for _ in range(extra_asks):
                _expect(
                    algorithm.ask() is None, "ask returned None, then a proposal without a tell"
                )
            return False
        _expect(proposal.recipe.operator in problem.space.methods, "proposal of another operator")
        named = tuple(name for name in proposal.recipe.sources if not is_made(name))
        _expect(named == problem.space.sources, "proposal with other sources")
        _expect(set(proposal.parents) <= told, f"parents {proposal.parents} were never told")
        number = len(problem.space.founders) + len(seen)
        waiting.append(
            Candidate(number, proposal.recipe, proposal.parents, examples=proposal.examples)
        )
        seen.append((proposal.recipe.digest(), proposal.parents))
        return True

    def tell(candidate: Candidate) -> None:
        recipe = candidate.recipe
        if copied:
            recipe = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
        candidate = replace(candidate, recipe=recipe)
        if chance.random() < failures:
            algorithm.tell(Evaluation(candidate, error="planned failure"))
        else:
            algorithm.tell(_with_earlier(Evaluation(candidate, problem.scores(recipe)), known))
            told.add(candidate.id)

    for _ in range(early_asks):
        ask()
    for number, founder in enumerate(problem.space.founders):
        tell(Candidate(number, founder.recipe))
    while len(seen) < n_evaluations or waiting:
        while len(waiting) < in_flight and len(seen) < n_evaluations and ask():
            pass
        tell(waiting.pop(int(chance.integers(len(waiting)))))
    return seen


def _with_earlier(evaluation: Evaluation, known: dict[str, ScoreArray]) -> Evaluation:
    """Return an evaluation with the scores that were asked for, now or earlier."""
    row = evaluation.flat_scores()
    asked = evaluation.candidate.examples
    digest = evaluation.candidate.recipe.digest()
    mine = known.setdefault(digest, np.full(len(row), np.nan, np.float32))
    mine[slice(None) if asked is None else asked] = row[slice(None) if asked is None else asked]
    sizes = {task: len(own) for task, own in evaluation.scores.items()}
    scores = split_scores(mine.copy(), sizes)
    return replace(evaluation, scores=scores, examples=scored_examples(mine))


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(f"search algorithm: {message}")


def check_evaluator(evaluator: Evaluator, subject: Subject, *, tolerance: float = 0.0) -> None:
    """Check that an evaluator keeps the contract of `Evaluator` on one model.

    (N,) float32 scores, all finite; the same scores twice, also after other random numbers were
    drawn; the same score for an example whichever others are asked for; the model's weights, the
    evaluator itself and the global random streams untouched; digests and margins, where the
    evaluator gives them, one per example and always the same, margins above 0 where it scores 1.

    Args:
        evaluator: What to check, with readable data.
        subject: A resident model it can score.
        tolerance: Largest difference allowed between the scores of an example in two sets of
            examples; 0 is right wherever the engine can do it.

    Raises:
        AssertionError: A property does not hold; the message says which.
    """
    import hashlib

    import torch

    from evomerge.evaluation.evaluator import example_digests
    from evomerge.evaluation.margins import gives_margins, score_with_margins

    def digest() -> str:
        found = hashlib.blake2b()
        for name, tensor in sorted(subject.model.state_dict().items()):
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return found.hexdigest()

    def expect(holds: bool, message: str) -> None:
        if not holds:
            raise AssertionError(f"evaluator {type(evaluator).__name__}: {message}")

    before, settings = digest(), repr(evaluator)
    torch_state, np_state = torch.random.get_rng_state(), np.random.get_state()  # noqa: NPY002
    expect(isinstance(evaluator.auto_class, str), "auto_class must name a transformers class")
    n = evaluator.n_examples()
    expect(n >= 1, f"n_examples must be at least 1, not {n}")
    expect(evaluator.n_examples() == n, "n_examples must not change")
    digests = example_digests(evaluator)
    first = evaluator.evaluate(subject)
    expect(
        torch.equal(torch.random.get_rng_state(), torch_state),
        "torch's global random stream must stay untouched",
    )
    same_np = all(
        np.array_equal(now, then)
        for now, then in zip(np.random.get_state(), np_state, strict=True)  # noqa: NPY002
    )
    expect(same_np, "numpy's global random stream must stay untouched")
    expect(isinstance(first, np.ndarray), f"scores must be an array, not {type(first).__name__}")
    expect(first.shape == (n,), f"scores must be ({n},), not {first.shape}")
    expect(first.dtype == np.float32, f"scores must be float32, not {first.dtype}")
    expect(bool(np.isfinite(first).all()), "scores must be finite")
    kept = first.copy()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        second = evaluator.evaluate(subject)
    expect(np.array_equal(first, kept), "a later call must not write to earlier scores")
    expect(np.array_equal(first, second), "the same model must get the same scores twice")
    reverse = np.arange(n, dtype=np.int64)[::-1]
    for wanted in (reverse, reverse[::2], np.arange(n // 2), np.array([0, n - 1, 0]), reverse[:0]):
        part = evaluator.evaluate(subject, wanted)
        expect(
            part.shape == wanted.shape and part.dtype == np.float32,
            f"scores of {len(wanted)} examples must be float32 {wanted.shape}, not {part.dtype} "
            f"{part.shape}",
        )
        expect(
            np.allclose(part, first[wanted], rtol=0.0, atol=tolerance),
            "the score of an example must not depend on the others asked for "
            f"(positions {wanted.tolist()[:8]})",
        )
    if gives_margins(evaluator):
        scores, margins = score_with_margins(evaluator, subject, None)
        expect(np.array_equal(scores, first), "scores must be the same with margins")
        expect(margins.shape == (n,), f"margins must be ({n},), not {margins.shape}")
        expect(margins.dtype == np.float32, f"margins must be float32, not {margins.dtype}")
        expect(bool(np.isfinite(margins).all()), "margins must be finite")
        # About 0 at ties, which go to the first answer.
        agrees = (np.abs(margins) < 1e-3) | ((margins > 0.0) == (first == 1.0))
        expect(bool(agrees.all()), "margins must be above 0 where the score is 1, and only there")
        again = score_with_margins(evaluator, subject, reverse)[1]
        near = np.allclose(again, margins[reverse], rtol=1e-4, atol=max(tolerance, 1e-4))
        expect(near, "the margin of an example must not depend on the others asked for")
    if digests is not None:
        _check_digests(digests, n, expect)
        expect(example_digests(evaluator) == digests, "digests must not change by scoring")
    expect(digest() == before, "the model's weights must stay untouched")
    expect(repr(evaluator) == settings, "the evaluator's settings must stay untouched")


def _check_digests(digests: object, n: int, expect: Callable[[bool, str], None]) -> None:
    expect(
        isinstance(digests, tuple)
        and len(digests) == n
        and all(re.fullmatch("[0-9a-f]{16}", digest) for digest in digests),
        f"example_digests must be a tuple of {n} digests of 16 hex digits",
    )


def check_merge_operator(
    operator: str | type, *, order_matters: bool = False, lone_expert: bool = True
) -> None:
    """Check that a merge operator keeps the contract of `MergeOperator`.

    Shape, dtype and bits of the result on random tensors of odd shapes in three dtypes; inputs
    left alone; experts equal to the base give it back; a lone expert comes back bit for bit; the
    order of experts does not matter; a seed decides the masks; slices equal the whole.

    Args:
        operator: Registered name, or the class.
        order_matters: The method depends on the order of the experts by design. Methods
            without a parameter per source are not checked for order either.
        lone_expert: A single expert with weight, scale and density 1 must come back.

    Raises:
        AssertionError: A property does not hold; the message says which.
        UnknownNameError: No merge method has that name.
    """
    from evomerge.merging import conformance

    conformance.check_merge_operator(operator, order_matters=order_matters, lone_expert=lone_expert)


def check_delta_transform(
    transform: str | type,
    *,
    parameters: Mapping[str, Any] | None = None,
    n_experts: Sequence[int] = (1, 2, 3, 4),
    scale_equivariant: bool = True,
    tolerance: float = 1e-3,
) -> None:
    """Check that a delta transform keeps the contract of `DeltaTransform`.

    Number, shape, dtype and bits of the results on random tensors of odd shapes; inputs left alone;
    finite results also for experts equal to the base; means where `fallback` says so; the order of
    experts does not matter unless `is_ordered`; longer task vectors give longer results.

    Args:
        transform: Registered name, or the class.
        parameters: Constructor keywords; default: the class's defaults.
        n_experts: Numbers of experts to try.
        scale_equivariant: False for a method that looks at the size of the task vectors by design.
        tolerance: Largest error allowed, relative to the largest element.

    Raises:
        AssertionError: A property does not hold; the message says which.
        UnknownNameError: No delta transform has that name.
    """
    from evomerge.merging import transform_conformance

    transform_conformance.check_delta_transform(
        transform,
        parameters=parameters,
        n_experts=n_experts,
        scale_equivariant=scale_equivariant,
        tolerance=tolerance,
    )
