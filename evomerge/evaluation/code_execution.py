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
from evomerge.evaluation.sandbox import Isolation, run_python
from evomerge.evaluation.sandbox import Limits as ProgramLimits
from evomerge.evaluation.served_subject import ServedModel, text_subject
from evomerge.evaluation.server import ServedCandidate
from evomerge.evaluation.text_model import TextModel
from evomerge.evaluation.vllm_engine import VllmEngine
from evomerge.evaluation.writing import Writing, refuse_two_writers, writing_of

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
        batch_tokens: Prompt tokens per batch of a resident model; "auto": what the device takes,
            halved when its memory runs out.
        batch_size: Most prompts per batch; None: as many as `batch_tokens` allow.
        max_length: Keep only the last so many prompt tokens; None: longer ones are an error.
        chat_template: Make a chat message of every prompt, with the tokenizer's template.
        chat_template_file: Jinja template to use instead.
        system_prompt: System message in front of it.
        rows: Half-open range of examples [start, stop); None: all.
        engine: What runs the worker's model, such as `{name: vllm}`; None: transformers.

    Raises:
        ConfigError: Execution is not allowed, or a setting is out of range.

    Source: the format of HumanEval, arXiv:2107.03374.
    """

    examples: Path
    allow_code_execution: bool = False
    answer: Literal["continuation", "fenced"] = "continuation"
    limits: ProgramLimits = field(default_factory=ProgramLimits)
    isolation: Isolation = "namespaces"
    programs: int = 2
    candidate: ServedCandidate | None = None
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    batch_tokens: int | Literal["auto"] = "auto"
    batch_size: int | None = None
    max_length: int | None = None
    chat_template: bool = False
    chat_template_file: Path | None = None
    system_prompt: str | None = None
    rows: tuple[int, int] | None = None
    engine: VllmEngine | None = None

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
        chat = self._writing.chat
        refuse_two_writers("code_execution", self.candidate, chat, self.engine)

    @property
    def _writing(self) -> Writing:
        return writing_of(self)

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
        """Return (N,) digests of prompt and tests, and of the chat around the prompt."""
        rows = read_rows(self.examples, self.rows)
        chat = self._writing.chat.content()
        return tuple(row.digest("prompt", "tests", beside=chat) for row in rows)

    def probe(self, subject: TextModel | ServedModel, positions: IntArray) -> list[str]:
        """Return all that the model writes for these examples; see `Probes`."""
        writer = text_subject(subject, self.candidate)
        writer.require("AutoModelForCausalLM")
        return self._writing.texts(writer, self.examples, self.rows, positions)

    def evaluate(
        self, subject: TextModel | ServedModel, positions: IntArray | None = None
    ) -> ScoreArray:
        """Return (n,) float32 of 0.0 or 1.0, in the order of `positions`.

        Raises:
            UnavailableError: Programs cannot be isolated here.
            EvaluationError: The model cannot answer.
        """
        wanted = chosen(self.n_examples(), positions)
        data = read_rows(self.examples, self.rows)
        rows = [data[i] for i in wanted]
        answers = self.probe(subject, wanted)
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
