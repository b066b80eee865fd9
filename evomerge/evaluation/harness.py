"""Tasks of lm-evaluation-harness, scored on the resident model.

lm-eval is an extra (`pip install evomerge[lm-eval]`) and imported when a run starts. Its task,
documents and requests are built once per worker; its `simple_evaluate` builds them for every
model, and spends most of a small evaluation on that.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import numpy as np

from evomerge.core.arrays import IntArray, ScoreArray
from evomerge.errors import ConfigError, DataError, EvaluationError, EvomergeError, first_line
from evomerge.evaluation import harness_files
from evomerge.evaluation.batching import Limits
from evomerge.evaluation.evaluator import evaluator
from evomerge.evaluation.examples import check_settings, checked_scores, chosen, content_digest
from evomerge.evaluation.harness_answers import AnswerPlan, chat_template, check_generation
from evomerge.evaluation.harness_metric import Metric, choose_metric
from evomerge.evaluation.harness_task import (
    FEWSHOT_SEED,
    Prompting,
    Requests,
    build_requests,
    documents,
    fresh,
    load_task,
    quiet,
    seed_streams,
)
from evomerge.evaluation.subject import Subject


@dataclass(frozen=True, eq=False)
class _Loaded:
    """A task, the documents that count and what is scored of them."""

    task: Any
    path: Path
    docs: list[Any]
    numbers: tuple[int, ...]  # of the documents in the task
    metric: Metric
    ensemble: Any

    @property
    def reads_greedy(self) -> bool:
        """Whether the score looks at which tokens are the likeliest, not only at how likely."""
        config = self.task.config
        own_code = callable(getattr(config, "process_results", None))
        return (
            own_code
            or type(self.task).__name__ != "ConfigurableTask"
            or (self.task.OUTPUT_TYPE, self.metric.name)
            in (("loglikelihood", "acc"), ("multiple_choice", "exact_match"))
        )


@evaluator("lm_eval")
@dataclass(frozen=True, kw_only=True)
class LmEval:
    """The score of each document under one metric of one task, higher is better.

    Runs the Python code that comes with a task (`!function` in its file): only name tasks you
    trust. Data sets that a task names are downloaded once by the `datasets` library.

    A metric of which less is better is negated. Perplexities are scored by document: a mean of
    log-likelihoods (`perplexity`), minus the log of the perplexity per word or byte, or minus
    the bits per byte; documents then count the same, while the harness weighs them by length.

    Attributes:
        task: Name of a task; groups and tags are refused with the names of their tasks.
        include_path: Folder with task files of your own, searched first.
        metric: As the harness writes it, "exact_match,strict-match"; the filter may be left out
            where there is one, the metric where the task has one.
        num_fewshot: Examples in the prompt; None: what the task says.
        limit: Use the first so many documents.
        samples: Use these documents, counted from 0, in the order of the task.
        rows: Use the half-open range of documents [start, stop).
        apply_chat_template: Render prompts with the tokenizer's chat template.
        fewshot_as_multiturn: Render examples in the prompt as turns of the chat.
        system_instruction: Put in front of every prompt.
        gen_kwargs: Changes of the task's `generation_kwargs`, such as `{max_gen_toks: 64}`.
        fewshot_seed: Draws the examples in the prompt.
        batch_tokens: Tokens per forward pass; "auto": what the device takes, halved when its
            memory runs out.
        batch_size: Most sequences per forward pass; None: as many as `batch_tokens` allow.
        allow_code_execution: Allow tasks that run programs written by the model (HumanEval, MBPP);
            they run in the sandbox, see `code_execution`.
    """

    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    packages: ClassVar[tuple[str, ...]] = ("datasets", "lm-eval")  # whose versions scores need

    task: str
    include_path: Path | None = None
    metric: str | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    samples: tuple[int, ...] | None = None
    rows: tuple[int, int] | None = None
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = True
    system_instruction: str | None = None
    gen_kwargs: Mapping[str, Any] = field(default_factory=dict)
    fewshot_seed: int = FEWSHOT_SEED
    batch_tokens: int | Literal["auto"] = "auto"
    batch_size: int | None = None
    allow_code_execution: bool = False

    def __post_init__(self) -> None:
        _ = Limits(self.batch_tokens, self.batch_size)
        check_settings(
            "lm_eval",
            rows=self.rows,
            positive={"limit": self.limit, "batch_size": self.batch_size},
        )
        given = [key for key in ("limit", "samples", "rows") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ConfigError(f"lm_eval: give one of {' and '.join(given)}, not both.")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise ConfigError(f"lm_eval: num_fewshot is {self.num_fewshot}, expected 0 or more.")
        if self.samples is not None:
            repeated = len(set(self.samples)) < len(self.samples)
            if not self.samples or repeated or min(self.samples) < 0:
                raise ConfigError(
                    "lm_eval: samples must be numbers of documents, counted from 0, each once."
                )

    def n_examples(self) -> int:
        """Return N, loading the task.

        Raises:
            ConfigError: lm-eval is not installed, there is no such task or metric, or a setting
                does not fit the task.
            DataError: The task's file or data set is missing or broken.
        """
        return len(self._loaded.docs)

    def code_files(self) -> tuple[Path, ...]:
        """Return the files of a task of the user's own; a changed one cannot be replayed."""
        path = self._loaded.path
        if self.include_path is None or not path.is_relative_to(self.include_path):
            return ()
        return harness_files.code_files(path)

    def document_ids(self) -> frozenset[tuple[str, int]]:
        """Return what tells the documents from those of other tasks: file and number."""
        return frozenset((str(self._loaded.path), number) for number in self._loaded.numbers)

    def example_digests(self) -> tuple[str, ...]:
        """Return (N,) digests of document, prompts, the task's files and the harness's version.

        Prompts are those without a chat template, which belongs to the model.
        """
        import lm_eval

        files = [file for file in self.code_files() if file.suffix in (".yaml", ".py")]
        common = [lm_eval.__version__, *(content_digest(file.read_text()) for file in files)]
        return tuple(
            content_digest([*common, repr(group[0].doc), *(repr(item.args) for item in group)])
            for group in self._requests
        )

    def document_digests(self) -> tuple[str, ...]:
        """Return (N,) digests of the documents alone, whatever examples their prompts show."""
        return tuple(content_digest(repr(doc)) for doc in self._loaded.docs)

    def shown_digests(self) -> frozenset[str]:
        """Return digests of the documents that prompts take their examples from."""
        task = self._loaded.task
        if not task.config.num_fewshot:
            return frozenset()
        with quiet():
            return frozenset(content_digest(repr(doc)) for doc in task.fewshot_docs())

    def evaluate(self, subject: Subject, positions: IntArray | None = None) -> ScoreArray:
        """Return (n,) float32 scores in the order of `positions`.

        Raises:
            EvaluationError: The model cannot answer, or a document cannot be scored.
            ImportError: The task's own code imports what is not installed.
        """
        wanted = chosen(self.n_examples(), positions)
        subject.require(self.auto_class)
        if not wanted.size:
            return np.zeros(0, dtype=np.float32)
        asked = sorted({int(position) for position in wanted})
        requests = self._requests_for(subject)
        plan = subject.prepared(
            self._loaded,
            lambda: AnswerPlan.of(subject, requests, greedy=self._loaded.reads_greedy),
        )
        answers = plan.answer(subject, asked, Limits(self.batch_tokens, self.batch_size))
        groups = fresh([requests[position] for position in asked])
        for position, group in zip(asked, groups, strict=True):
            for k, request in enumerate(group):
                # Greedy answers are the same however often a task repeats a question.
                request.resps = [answers[position, k]] * request.repeats
        with quiet():
            found = {
                position: self._score(subject, position, group)
                for position, group in zip(asked, groups, strict=True)
            }
        scores = [found[int(position)] for position in wanted]
        return checked_scores(
            scores, n=len(wanted), subject=subject.name, path=self.task, positions=wanted
        )

    def _score(self, subject: Subject, position: int, group: list[Any]) -> float:
        """Return the score of one document; nothing depends on the documents before it."""
        task, metric = self._loaded.task, self._loaded.metric
        seed_streams()
        try:
            self._loaded.ensemble.apply(group)
            answers = [request.filtered_resps[metric.filter] for request in group]
            doc = deepcopy(self._loaded.docs[position])
            return metric.score(task, task.process_results(doc, answers))
        except EvomergeError as error:
            where = f"{subject.name}: document {position} of {self.task}"
            raise type(error)(f"{where}: {error}") from error
        except ImportError:  # no fault of the model, so not of the candidate either
            raise
        except Exception as error:  # filters and metrics may be the task's own code
            raise EvaluationError(
                f"{subject.name}: document {position} of {self.task} cannot be scored "
                f"({type(error).__name__}: {first_line(error)})"
            ) from error

    @cached_property
    def _loaded(self) -> _Loaded:
        try:
            import lm_eval  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "evaluator 'lm_eval' needs the package lm-eval: pip install 'evomerge[lm-eval]'"
            ) from error
        with quiet():
            path = harness_files.task_file(self.task, self.include_path)
            task = load_task(
                path,
                num_fewshot=self.num_fewshot,
                gen_kwargs=self.gen_kwargs,
                run_code=self.allow_code_execution,
            )
            if task.OUTPUT_TYPE == "generate_until":
                check_generation(task.config.generation_kwargs or {})
            ensembles = {item.name: item for item in task._filters}
            metric = choose_metric(task, self.metric, list(ensembles))
            found = documents(task, path)
            numbers = self._numbers(len(found), path)
            docs = [found[number] for number in numbers]
        return _Loaded(task, path, docs, numbers, metric, ensembles[metric.filter])

    def _numbers(self, n_documents: int, path: Path) -> tuple[int, ...]:
        if self.samples is not None:
            numbers = sorted(self.samples)
        elif self.rows is not None:
            numbers = list(range(*self.rows))
        else:
            numbers = list(range(min(self.limit or n_documents, n_documents)))
        if numbers[-1] >= n_documents:
            raise DataError(
                f"{path}: document {numbers[-1]} is asked for, but task {self.task!r} has "
                f"{n_documents}, counted from 0."
            )
        return tuple(numbers)

    @cached_property
    def _requests(self) -> Requests:
        """Requests without a chat template, one list per document."""
        return self._built(None)

    @cached_property
    def _templated(self) -> WeakKeyDictionary[Subject, Requests]:
        """Requests with the chat template of a resident model."""
        return WeakKeyDictionary()

    def _requests_for(self, subject: Subject) -> Requests:
        if not self.apply_chat_template:
            return self._requests
        if subject not in self._templated:
            self._templated[subject] = self._built(subject)
        return self._templated[subject]

    def _built(self, subject: Subject | None) -> Requests:
        prompting = Prompting(
            fewshot_seed=self.fewshot_seed,
            system_instruction=self.system_instruction,
            fewshot_as_multiturn=self.fewshot_as_multiturn,
        )
        template = None if subject is None else chat_template(subject)
        with quiet():
            try:
                return build_requests(self._loaded.task, self._loaded.docs, prompting, template)
            except Exception as error:  # templates and functions of the task
                raise DataError(
                    f"{self._loaded.path}: a prompt cannot be built ({type(error).__name__}: "
                    f"{first_line(error)}); correct the task."
                ) from error
