"""Worker: the resident model, the sources and the evaluators of one process on one device.

A plain class: the in-process executor calls it directly, a Ray actor wraps it.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from evomerge.core.arrays import IntArray, ScoreArray
from evomerge.core.candidate import Candidate, Evaluation, known_margins, split_scores
from evomerge.core.model_space import ModelSpace
from evomerge.core.recipe import Recipe
from evomerge.errors import (
    DataError,
    EvaluationError,
    EvomergeError,
    ExecutorError,
    UnavailableError,
    first_line,
)
from evomerge.evaluation.evaluator import Evaluator
from evomerge.evaluation.http_client import Meter, usage_text
from evomerge.evaluation.margins import score_with_margins
from evomerge.evaluation.packages import what_to_install
from evomerge.evaluation.sanity import watched_outputs
from evomerge.evaluation.served_subject import ServedModel
from evomerge.evaluation.subject import Subject
from evomerge.evaluation.vllm_subject import VllmSubject
from evomerge.evaluation.vote import Answer, answers_of
from evomerge.merging.derived import Derived
from evomerge.merging.materialize import materialize
from evomerge.merging.plan import build_operators, tensor_keys
from evomerge.merging.source import TensorSource
from evomerge.merging.weights_digest import WeightsDigest
from evomerge.runtime.canary import Canary
from evomerge.runtime.placement import release_memory
from evomerge.runtime.spot_check import check_resident
from evomerge.search.ports import Outcome


class CandidateScorer(Protocol):
    """Scores one candidate; never raises for a candidate that cannot be scored."""

    def evaluate(self, candidate: Candidate) -> Outcome:
        """Return scores or the error, with the time taken."""
        ...


@dataclass(frozen=True, eq=False)
class Scored:
    """What examples of all tasks scored, in task-name order.

    Attributes:
        scores: (N,) float32, NaN where an example was not scored.
        margins: (N,) float32, NaN where there is none; see `evaluation.margins`.
    """

    scores: ScoreArray
    margins: ScoreArray


class ScoreMemory(Protocol):
    """Remembers what merged tensors scored, in other runs as well."""

    def recall(self, weights: str) -> Scored:
        """Return what is known of merged tensors."""
        ...

    def keep(self, weights: str, scored: Scored) -> None:
        """Remember what was scored."""
        ...


@dataclass(frozen=True, eq=False)
class MergeInputs:
    """What every merge of a run reads.

    Attributes:
        space: Aligned tensors.
        sources: Source id -> model on disk.
        derived: Gram matrices and thresholds, the same in every process of the run.
    """

    space: ModelSpace
    sources: Mapping[str, TensorSource]
    derived: Derived


class Worker:
    """Merges candidates into resident models and scores them."""

    def __init__(
        self,
        merge_inputs: MergeInputs,
        subjects: Sequence[Subject | VllmSubject],
        evaluators: Mapping[str, tuple[Evaluator, Any]],
        *,
        device: str,
        name: str = "in-process",
    ) -> None:
        """Args: evaluators: task -> its evaluator, and the subject or served model it scores."""
        self._inputs = merge_inputs
        self._subjects = tuple(subjects)
        self._evaluators = dict(sorted(evaluators.items()))
        scored = dict.fromkeys(subject for _, subject in self._evaluators.values())
        self._served: list[ServedModel] = [m for m in scored if isinstance(m, ServedModel)]
        self._meters: list[Meter] = [model.client.meter for model in self._served]
        self._meters += [e.meter for e, _ in self._evaluators.values() if hasattr(e, "meter")]
        self._device = device
        self.name = name
        self.notes: tuple[str, ...] = ()  # what events.log should say about how it was built
        self.memory: ScoreMemory | None = None  # set it to have scores of other runs taken over
        self._canary: Canary | None = None
        # Scores for `memory`, which other runs trust, until the canary confirms them.
        self._unconfirmed: list[tuple[str, Scored]] = []
        self._n_recalled = 0  # scores of the candidate in hand that came from `memory`
        self._digest = WeightsDigest()
        # Of each resident model: tensor -> key of the value it holds.
        self._resident: list[dict[str, object]] = [{} for _ in self._subjects]

    def watch(self, every: int) -> None:
        """Look at the base model again after every so many candidates; see `runtime.canary`.

        From then on `memory` is told scores only once the next look has confirmed them.
        """
        self._canary = Canary(
            self._inputs.space,
            self._evaluators,
            self.install,
            every=every,
            on_alive=self._keep_confirmed,
        )

    def last_look(self) -> None:
        """Look at the known models once more, after the last candidate; see `watch`.

        Raises:
            UnavailableError: The canary died, or could not be looked at.
            ExecutorError: An engine or a server failed.
        """
        if self._canary is None:
            return
        for subject in (*self._subjects, *self._served):
            subject.name = "canary"  # in messages
        try:
            self._canary.look_back()
        except ExecutorError:
            raise
        except Exception as error:  # what `evaluate` makes a failed candidate of
            raise UnavailableError(
                f"canary: the models could not be looked at after the last candidate "
                f"({first_line(error)}), so its scores and those shortly before it are not "
                "confirmed; score the best ones again: evomerge replay"
            ) from error

    def close(self) -> None:
        """End the engines of this worker; nothing can be scored afterwards."""
        for subject in self._subjects:
            if isinstance(subject, VllmSubject):
                subject.close()

    def evaluate(self, candidate: Candidate) -> Outcome:
        """Merge, install, score; a failure becomes an evaluation with an error.

        Raises:
            ExecutorError: The device is in a state that only a new process can leave, a resident
                model is not what its recipe says, a server that scores cannot be used, examples or
                a package are missing, or the canary died: none is the candidate's fault.
        """
        started = time.perf_counter()
        detail, is_transient = "", False
        self._n_recalled = 0
        scored: list[Subject | VllmSubject | ServedModel] = [*self._subjects, *self._served]
        for subject in scored:
            subject.name = f"candidate {candidate.id}"  # in messages
        try:
            if self._canary is not None:
                self._canary.look(candidate.id)
            weights = self.install(candidate.recipe)
            self._check_resident(candidate.recipe)
            scored_now = self._scored(weights, candidate.examples)
            evaluation = Evaluation(
                candidate,
                split_scores(scored_now.scores, self.sizes),
                None,
                weights,
                margins=known_margins(scored_now.margins, self.sizes),
            )
        except torch.AcceleratorError as error:
            raise ExecutorError(
                f"{self._device} failed at candidate {candidate.id}: {first_line(error)}. Nothing "
                "that was told is lost; resume the run"
            ) from error
        except (MemoryError, torch.OutOfMemoryError) as error:
            evaluation = Evaluation(candidate, error=f"out of memory: {first_line(error)}")
            detail, is_transient = traceback.format_exc(), True
            release_memory()
        except ExecutorError:
            raise
        except (DataError, ImportError) as error:  # every other candidate would fail like this
            why = what_to_install(error) if isinstance(error, ImportError) else str(error)
            raise UnavailableError(
                f"candidate {candidate.id} cannot be scored: {why.rstrip('.')}. Nothing that was "
                "told is lost; resume the run afterwards"
            ) from error
        except Exception as error:
            # One bad candidate (or a user's evaluator function) must not end the search; a
            # streak of failures does.
            kind = "" if isinstance(error, EvomergeError) else f"{type(error).__name__}: "
            evaluation = Evaluation(candidate, error=f"{kind}{first_line(error)}")
            detail = traceback.format_exc()
        seconds = time.perf_counter() - started
        recalled = f"recalled={self._n_recalled}" if self._n_recalled else ""
        detail = "\n".join(filter(None, (usage_text(self._meters), recalled, detail)))
        return Outcome(evaluation, seconds, self.name, 1, detail, is_transient)

    def install(self, recipe: Recipe) -> str:
        """Merge `recipe` into the resident models; return the digest of the merged tensors.

        Servers that hold the model are told to install it; where there is no resident model the
        digest is theirs. Only tensors that differ from what the models hold are merged, always
        from the sources: editing an earlier result would add up rounding errors.
        """
        operators = build_operators(recipe, self._inputs.space)
        keys = tensor_keys(recipe, self._inputs.space, operators)
        for position, subject in enumerate(self._subjects):
            resident = self._resident[position]
            changed = {name for name, key in keys.items() if resident.get(name) != key}
            complete = subject.complete(changed)
            changed = set(keys) if complete is None else complete & set(keys)
            for name in changed:
                resident.pop(name, None)
            stream = materialize(
                recipe,
                self._inputs.space,
                self._inputs.sources,
                self._inputs.derived,
                device=self._device,
                names=changed,
                into=subject.destinations(),
                operators=operators,
            )
            # Models of several classes share the weights; the digest is that of the first.
            stream = _digested(stream, self._digest) if position == 0 else stream
            subject.install(stream, unchanged=keys.keys() - changed)
            resident.update((name, keys[name]) for name in changed)
        served = [model.install(recipe) for model in self._served]
        return self._digest.hexdigest() if self._subjects else next(iter(served), "")

    def _check_resident(self, recipe: Recipe) -> None:
        """Raise ExecutorError when a sampled tensor of a resident model is not the recipe's."""
        for subject, resident in zip(self._subjects, self._resident, strict=True):
            check_resident(
                recipe,
                self._inputs.space,
                self._inputs.sources,
                self._inputs.derived,
                held=subject.held(),
                installed=resident,
                device=self._device,
                name=subject.name,
            )

    @property
    def sizes(self) -> dict[str, int]:
        """Task -> number of examples, in task-name order."""
        return {task: e.n_examples() for task, (e, _) in self._evaluators.items()}

    def _scored(self, weights: str, examples: IntArray | None) -> Scored:
        """Return what `_score_all` does, with what is remembered of the installed tensors."""
        if self.memory is None or not weights:
            return self._score_all(examples)
        known = self.memory.recall(weights)
        wanted = np.arange(len(known.scores)) if examples is None else examples
        scores, margins = np.full((2, len(known.scores)), np.nan, np.float32)
        scores[wanted], margins[wanted] = known.scores[wanted], known.margins[wanted]
        missing = wanted[np.isnan(known.scores[wanted])]
        self._n_recalled = len(wanted) - len(missing)
        if len(missing):
            whole = len(missing) == len(scores)
            new = self._score_all(None if whole else missing)
            if self._canary is None:
                self.memory.keep(weights, new)
            else:
                self._unconfirmed.append((weights, new))
            is_old = np.isnan(new.scores)
            scores = np.where(is_old, scores, new.scores)
            margins = np.where(is_old, margins, new.margins)
        return Scored(scores, margins)

    def _keep_confirmed(self) -> None:
        """Tell `memory` what was scored before the canary was found alive."""
        for weights, scored in self._unconfirmed:
            if self.memory is not None:
                self.memory.keep(weights, scored)
        self._unconfirmed.clear()

    def score(self, examples: IntArray | None = None) -> dict[str, ScoreArray]:
        """Return every task's per-example scores of the installed model.

        Args:
            examples: (n,) positions over all tasks, in task-name order; None: all.

        Returns:
            Task -> (N_task,) scores, NaN where an example was not asked for.

        Raises:
            EvaluationError: A task cannot be scored.
        """
        return split_scores(self._score_all(examples).scores, self.sizes)

    def _score_all(self, examples: IntArray | None) -> Scored:
        """Score the installed model on (n,) positions over all tasks; None: all."""
        sizes, start = self.sizes, 0
        scores, margins = np.full((2, sum(sizes.values())), np.nan, np.float32)
        for task, (evaluator, subject) in self._evaluators.items():
            stop = start + sizes[task]
            own = None
            if examples is not None:
                own = examples[(examples >= start) & (examples < stop)] - start
            if own is None or len(own):
                where = slice(start, stop) if own is None else start + own
                with _watched(subject):
                    found, leads = score_with_margins(evaluator, subject, own)
                scores[where] = _checked(task, found, stop - start if own is None else len(own))
                margins[where] = _checked_margins(task, leads, len(found))
            start = stop
        return Scored(scores, margins)

    def answers(self) -> dict[str, Sequence[Answer]]:
        """Return every task's answers of the installed model, see `evaluation.vote`.

        Raises:
            ConfigError: A task's evaluator gives no answers.
            EvaluationError: A task cannot be answered.
        """
        found: dict[str, Sequence[Answer]] = {}
        for task, (evaluator, subject) in self._evaluators.items():
            with _watched(subject):
                found[task] = answers_of(evaluator, subject)
        return found


def _watched(subject: Subject | VllmSubject | ServedModel) -> AbstractContextManager[None]:
    """Return what checks the outputs of a model that is here."""
    if isinstance(subject, Subject):
        return watched_outputs(subject.model, subject.name)
    return nullcontext()


def _checked(task: str, scores: ScoreArray, n_examples: int) -> ScoreArray:
    if scores.shape != (n_examples,):
        raise EvaluationError(f"task {task!r}: {scores.shape} scores for {n_examples} examples")
    if not np.isfinite(scores).all():
        bad = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise EvaluationError(f"task {task!r}: score {bad} is {scores[bad]}, not a finite number")
    return scores.astype(np.float32, copy=False)  # as they are read back from the run


def _checked_margins(task: str, margins: ScoreArray, n_examples: int) -> ScoreArray:
    with np.errstate(over="ignore"):
        cast = np.asarray(margins, np.float32)
    if cast.shape != (n_examples,) or np.isinf(cast).any():
        raise EvaluationError(
            f"task {task!r}: margins must be {n_examples} numbers, none of them infinite"
        )
    return cast


def _digested(
    stream: Iterable[tuple[str, Tensor]], digest: WeightsDigest
) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in stream:
        digest.add(name, tensor)
        yield name, tensor
