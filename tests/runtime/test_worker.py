"""What a worker makes of candidates that cannot be scored."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from evomerge.core.candidate import Candidate
from evomerge.core.recipe import Recipe
from evomerge.errors import DataError, ExecutorError, UnavailableError
from evomerge.runtime.in_process import InProcessExecutor
from evomerge.runtime.worker import MergeInputs, Worker

CANDIDATE = Candidate(3, Recipe("linear", ("x", "y"), {"weights": np.ones((1, 2))}))


class Trouble(Worker):
    """Raises what it is told to when it merges, then works."""

    def __init__(self, *errors):
        super().__init__(MergeInputs(None, {}, None), [], {}, device="cpu", name="w")
        self.errors = list(errors)
        self.installs = 0

    def install(self, recipe):
        self.installs += 1
        if self.errors:
            raise self.errors.pop(0)
        return "digest"


def score(worker, max_attempts=3):
    executor = InProcessExecutor(worker, max_attempts=max_attempts)
    executor.submit(CANDIDATE)
    return executor.wait(0.0)[0]


def test_a_bad_candidate_is_a_failed_evaluation_with_its_traceback():
    outcome = Trouble(ZeroDivisionError("by zero\nmore")).evaluate(CANDIDATE)
    assert outcome.evaluation.error == "ZeroDivisionError: by zero"
    assert "Traceback" in outcome.detail
    assert not outcome.is_transient


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("no more")])
def test_a_lack_of_memory_is_tried_again(error):
    worker = Trouble(error)
    outcome = score(worker)
    assert outcome.evaluation.error is None
    assert (outcome.attempt, worker.installs) == (2, 2)


def test_a_lack_of_memory_that_lasts_is_a_failure_after_max_attempts():
    outcome = score(Trouble(*[MemoryError()] * 5), max_attempts=2)
    assert outcome.evaluation.error == "out of memory: MemoryError"
    assert outcome.attempt == 2


def test_other_failures_are_not_tried_again():
    worker = Trouble(ValueError("bad"))
    assert score(worker).evaluation.error == "ValueError: bad"
    assert worker.installs == 1


def test_a_sick_device_ends_the_process_instead_of_failing_candidate_after_candidate():
    with pytest.raises(
        ExecutorError, match=r"cpu failed at candidate 3: device-side assert.*resume"
    ):
        Trouble(torch.AcceleratorError("device-side assert")).evaluate(CANDIDATE)


def test_a_server_that_is_gone_ends_the_run_instead_of_failing_candidate_after_candidate():
    with pytest.raises(UnavailableError, match="gone"):
        Trouble(UnavailableError("gone")).evaluate(CANDIDATE)


def test_a_missing_package_ends_the_run_and_is_named_with_its_extra():
    missing = ModuleNotFoundError("No module named 'lm_eval'", name="lm_eval")
    with pytest.raises(
        UnavailableError,
        match=r"candidate 3 cannot be scored: No module named 'lm_eval'; install that package "
        r"where the workers run: pip install 'evomerge\[lm-eval\]'\. Nothing.*resume",
    ):
        Trouble(missing).evaluate(CANDIDATE)
    with pytest.raises(UnavailableError, match=r"No module named 'own'; install that package wh"):
        Trouble(ModuleNotFoundError("No module named 'own'", name="own.part")).evaluate(CANDIDATE)


def test_examples_that_are_gone_end_the_run_instead_of_failing_candidate_after_candidate():
    with pytest.raises(
        UnavailableError,
        match=r"candidate 3 cannot be scored: a\.jsonl: is empty\. Nothing.*resume",
    ):
        Trouble(DataError("a.jsonl: is empty.")).evaluate(CANDIDATE)


class Constant:
    """Gives the same scores to every model."""

    auto_class = "AutoModel"

    def __init__(self, scores):
        self.scores = scores

    def n_examples(self):
        return len(self.scores)

    def evaluate(self, subject, positions=None):
        return self.scores if positions is None else self.scores[positions]


@pytest.mark.parametrize("examples", [None, np.array([1])])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_no_number_fails_the_candidate_and_not_the_run(bad, examples):
    worker = Trouble()
    worker._evaluators = {"t": (Constant(np.array([0.5, bad])), None)}
    outcome = worker.evaluate(replace(CANDIDATE, examples=examples))
    number = 1 if examples is None else 0
    assert outcome.evaluation.error == f"task 't': score {number} is {bad}, not a finite number"


def test_scores_are_told_as_they_will_be_read_back():
    worker = Trouble()
    worker._evaluators = {"t": (Constant(np.array([0.1, 1 / 3])), None)}
    assert worker.evaluate(CANDIDATE).evaluation.scores["t"].dtype == np.float32
