"""Metrics of lm-evaluation-harness that run what models write, in evomerge's sandbox.

The harness's HumanEval and MBPP score through `code_eval` of the `evaluate` library, which runs
programs with the rights of this process. While such a task is loaded, `code_eval` is a stand-in
that runs each program apart (`evaluation.sandbox`). A task that runs code in a way of its own is
refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import comb
from typing import Any

from evomerge.errors import ConfigError
from evomerge.evaluation.sandbox import Limits, run_python

CODE_EVAL = "code_eval"


class SandboxedCodeEval:
    """What `evaluate.load("code_eval")` returns, but for where programs run.

    Source: the metric `code_eval` of Hugging Face `evaluate` 0.4.6, after arXiv:2107.03374.
    Differs from it: one program at a time, with the standard library only.
    """

    def compute(
        self,
        *,
        references: Sequence[str],
        predictions: Sequence[Sequence[str]],
        k: Sequence[int] = (1, 10, 100),
        timeout: float = 3.0,
        num_workers: int = 1,  # noqa: ARG002 (the metric's signature)
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
        """Return {"pass@k": probability} over all problems, and how each program ended.

        Args:
            references: (N,) tests, Python that fails when the answer is wrong.
            predictions: (N,) programs written for each problem.
            k: How many programs may be tried; those with fewer programs are left out.
            timeout: Seconds of one program.
            num_workers: Passed over.

        Raises:
            UnavailableError: Programs cannot be isolated here.
        """
        limits = Limits(seconds=timeout)
        results: dict[int, list[tuple[int, dict[str, Any]]]] = {}
        for task, (tests, programs) in enumerate(zip(references, predictions, strict=True)):
            for number, program in enumerate(programs):
                ran = run_python(f"{program}\n{tests}", limits)
                passed = ran.verdict == "passed"
                found = {"task_id": task, "passed": passed, "result": ran.verdict}
                results.setdefault(task, []).append((number, found | {"completion_id": number}))
        right = [sum(found["passed"] for _, found in results[task]) for task in results]
        total = [len(results[task]) for task in results]
        scores = {
            f"pass@{n}": sum(map(_pass_at, total, right, [n] * len(total))) / len(total)
            for n in k
            if total and min(total) >= n
        }
        return scores, results


def _pass_at(total: int, right: int, k: int) -> float:
    """Return the probability that one of k programs, drawn from all, is right."""
    return 1.0 - comb(total - right, k) / comb(total, k)


@contextmanager
def sandboxed() -> Iterator[None]:
    """Give tasks that are loaded in a `with` block the sandboxed `code_eval`, and no other metric.

    Raises:
        ConfigError: The task loads another metric of the library, which would be code of its own.
    """
    import evaluate

    original = evaluate.load

    def load(path: str, *_: Any, **__: Any) -> SandboxedCodeEval:
        if path != CODE_EVAL:
            raise ConfigError(
                f"lm_eval: the task loads the metric {path!r} to run code; only {CODE_EVAL!r} can "
                "run in the sandbox"
            )
        return SandboxedCodeEval()

    evaluate.load = load
    try:
        yield
    finally:
        evaluate.load = original


def require_sandbox(name: str, config: Mapping[str, Any]) -> None:
    """Refuse a task that runs code of models but not through the sandboxed metric.

    Args:
        name: Of the task.
        config: What its file holds, functions resolved.

    Raises:
        ConfigError: None of its functions has the metric at hand.
    """
    for function in _functions(config):
        names = getattr(function, "__globals__", {})
        if any(isinstance(value, SandboxedCodeEval) for value in names.values()):
            return
    raise ConfigError(
        f"lm_eval: task {name!r} runs code that the models write in a way of its own, not through "
        f"the metric {CODE_EVAL!r}, so it cannot be moved into the sandbox. Score its prompts and "
        "tests with the evaluator 'code_execution' instead"
    )


def _functions(value: Any) -> Iterator[Any]:
    if callable(value):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _functions(item)
