"""Code execution: does the program that a model writes pass its tests?"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from evomerge.core.arrays import IntArray, ScoreArray
from evomerge.errors import ConfigError
from evomerge.evaluation.evaluator import evaluator
from evomerge.evaluation.examples import Row, check_settings, checked_scores, chosen, read_rows
from evomerge.evaluation.sandbox import Isolation, Limits, run_python
from evomerge.evaluation.served_subject import ServedModel, text_subject
from evomerge.evaluation.server import ServedCandidate
from evomerge.evaluation.subject import Subject

_FENCED = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


@evaluator("code_execution")
@dataclass(frozen=True, kw_only=True)
class CodeExecution:
    """Score 1.0 where the generated Python runs through its tests, else 0.0.

    Every program runs apart (`evaluation.sandbox`), with the standard library only. Whether it is
    done in time depends on the machine, so leave room in `limits.seconds`.

    Attributes:
        allow_code_execution: Has to be true: programs that models write are run.
        examples: JSONL rows with `prompt` and `tests`, Python that fails when the answer is wrong.
            Of HumanEval, `tests` is `test` and a line `check(ENTRY_POINT)`; of MBPP, the joined
            `test_list`.
        answer: "continuation" runs prompt + answer; "fenced" the answer's first ``` block, or all
            of it where there is none.
        limits: What a program may use.
        isolation: "namespaces", or "none" where the machine does not permit them and the programs
            are trusted.
        programs: How many run at once.
        candidate: The server that holds the candidates; None: the worker's resident model.
        max_new_tokens: Most tokens of an answer.
        stop: Strings that end an answer.
        batch_size: Prompts per batch of a resident model.
        max_length: Keep only the last so many prompt tokens; None: longer ones are an error.
        rows: Half-open range of examples [start, stop); None: all.

    Raises:
        ConfigError: Execution is not allowed, or a setting is out of range.

    Source: the format of HumanEval, arXiv:2107.03374.
    """

    examples: Path
    allow_code_execution: bool = False
    answer: Literal["continuation", "fenced"] = "continuation"
    limits: Limits = field(default_factory=Limits)
    isolation: Isolation = "namespaces"
    programs: int = 2
    candidate: ServedCandidate | None = None
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    batch_size: int = 16
    max_length: int | None = None
    rows: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        if not self.allow_code_execution:
            raise ConfigError(
                "code_execution runs programs that models write. If that is meant, set "
                "`allow_code_execution: true`"
            )
        names = ("programs", "max_new_tokens", "batch_size", "max_length")
        positive = {name: getattr(self, name) for name in names}
        check_settings("code_execution", rows=self.rows, positive=positive)

    @property
    def auto_class(self) -> str | None:
        """Class of the resident model; None when candidates are served."""
        return "AutoModelForCausalLM" if self.candidate is None else None

    def n_examples(self) -> int:
        """Return N after checking every row; DataError names the first bad one."""
        rows = read_rows(self.examples, self.rows)
        for row in rows:
            row.text("prompt")
            row.text("tests")
        return len(rows)

    def example_digests(self) -> tuple[str, ...]:
        """Return (N,) digests of prompt and tests."""
        return tuple(row.digest("prompt", "tests") for row in read_rows(self.examples, self.rows))

    def evaluate(
        self, subject: Subject | ServedModel, positions: IntArray | None = None
    ) -> ScoreArray:
        """Return (n,) float32 of 0.0 or 1.0, in the order of `positions`.

        Raises:
            UnavailableError: Programs cannot be isolated here.
            EvaluationError: The model cannot answer.
        """
        data = read_rows(self.examples, self.rows)
        rows = [data[i] for i in chosen(self.n_examples(), positions)]
        writer = text_subject(subject, self.candidate)
        writer.require("AutoModelForCausalLM")
        answers = writer.generate(
            [row.text("prompt") for row in rows],
            batch_size=self.batch_size,
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
            max_length=self.max_length,
        )
        with ThreadPoolExecutor(self.programs) as pool:
            scores = list(pool.map(self._score, rows, answers))
        return checked_scores(scores, n=len(rows), subject=subject.name, path=self.examples)

    def _score(self, row: Row, answer: str) -> float:
        program = f"{self._program(row.text('prompt'), answer)}\n\n{row.text('tests')}\n"
        return float(run_python(program, self.limits, isolation=self.isolation).verdict == "passed")

    def _program(self, prompt: str, answer: str) -> str:
        if self.answer == "continuation":
            return prompt + answer
        block = _FENCED.search(answer)
        return block[1] if block else answer
