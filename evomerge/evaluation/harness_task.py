"""A task of lm-evaluation-harness, loaded once: its documents and the requests they make."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import ConfigError, DataError, EvomergeError, first_line
from evomerge.evaluation.harness_code import require_sandbox, sandboxed
from evomerge.evaluation.harness_files import local_data, read_task

Requests = list[list[Any]]  # of each document

# The seeds of the harness's `simple_evaluate`: a task's own code may draw from these streams.
PYTHON_SEED, NUMPY_SEED, FEWSHOT_SEED = 0, 1234, 1234


@dataclass(frozen=True)
class Prompting:
    """How documents become prompts; the names are those of `simple_evaluate`."""

    fewshot_seed: int
    system_instruction: str | None
    fewshot_as_multiturn: bool


def load_task(
    path: Path, *, num_fewshot: int | None, gen_kwargs: Mapping[str, Any], run_code: bool
) -> Any:
    """Return the harness's task object of a file, its data set loaded.

    Runs the Python code that comes with the task.

    Raises:
        ConfigError: It runs code that models write and that was not allowed, or not in a way
            that can be moved into the sandbox; it needs images or sound, fixes another number of
            examples, or takes no `gen_kwargs`.
        DataError: It cannot be loaded, or has no documents.
    """
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    config = read_task(path)
    name = str(config.get("task"))
    # Before anything is imported: such tasks may run code while they are loaded.
    is_unsafe = bool(config.get("unsafe_code", False))
    _refuse_unsafe(name, is_unsafe, run_code)
    try:
        with sandboxed() if is_unsafe else nullcontext():
            body = load_yaml(path, resolve_func=True)
            if config.get("dataset_kwargs"):
                body["dataset_kwargs"] = local_data(config, path)
            if is_unsafe:
                require_sandbox(name, body)
            loaded = TaskManager(include_defaults=False).load([body])
            (task,) = loaded["tasks"].values()
    except EvomergeError:
        raise
    except Exception as error:  # a task is code of its own, and so is a data set
        what = "has no documents" if isinstance(error, IndexError) else "cannot be loaded"
        raise DataError(
            f"{path}: task {name!r} {what} ({type(error).__name__}: {first_line(error)}); check "
            "its data set and the packages it needs."
        ) from error
    if getattr(task, "UNSAFE_CODE", False) and not is_unsafe:  # a class, which says so by itself
        raise ConfigError(
            f"lm_eval: task {name!r} runs code that the models write, in a way of its own that "
            "cannot be moved into the sandbox; see the evaluator 'code_execution'"
        )
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError(f"lm_eval: task {name!r} shows images or sound; only text is supported.")
    _set_fewshot(task, name, num_fewshot)
    if gen_kwargs:
        if task.OUTPUT_TYPE != "generate_until":
            raise ConfigError(f"lm_eval: task {name!r} generates nothing; remove `gen_kwargs`.")
        task.set_config(key="generation_kwargs", value=dict(gen_kwargs), update=True)
    return task


def documents(task: Any, path: Path) -> Any:
    """Return the documents a task is scored on, a sequence of mappings.

    Raises:
        DataError: There are none.
    """
    try:
        found = task.eval_docs
        found = found if hasattr(found, "__getitem__") else list(found)
        n_documents = len(found)
    except Exception as error:  # a task is code of its own
        raise DataError(
            f"{path}: the documents cannot be read ({type(error).__name__}: {first_line(error)})"
        ) from error
    if not n_documents:
        raise DataError(f"{path}: the task has no documents; check its splits and `process_docs`.")
    return found


def build_requests(
    task: Any,
    docs: list[Any],
    prompting: Prompting,
    chat_template: Callable[..., str] | None,
) -> Requests:
    """Return the requests of every document, few-shot examples drawn as the harness draws them.

    Source: lm-evaluation-harness 0.4.13, `Task.build_all_requests`.
    Differs from it: no cache of requests on disk, no progress bar.
    """
    task.set_fewshot_seed(seed=prompting.fewshot_seed)
    templated = {"apply_chat_template": chat_template is not None, "chat_template": chat_template}
    requests: Requests = []
    for position, doc in enumerate(docs):
        context = task.fewshot_context(
            doc,
            num_fewshot=task.config.num_fewshot,
            system_instruction=prompting.system_instruction,
            fewshot_as_multiturn=prompting.fewshot_as_multiturn,
            gen_prefix=task.doc_to_prefix(doc),
            **templated,
        )
        metadata = (task.config["task"], position, task.config.repeats)
        made = task.construct_requests(doc=doc, ctx=context, metadata=metadata, **templated)
        made = made if isinstance(made, list) else [made]
        requests.append(sorted(made, key=lambda request: request.idx))
    return requests


def fresh(requests: Requests) -> Requests:
    """Return copies of requests without answers, so that what was built is never changed."""
    copies = [[copy(request) for request in group] for group in requests]
    for group in copies:
        for request in group:
            request.resps, request.filtered_resps = [], {}
    return copies


@contextmanager
def quiet() -> Iterator[None]:
    """Run the harness without messages, progress bars and download counts.

    What it changes, and Python's and numpy's global random streams, are put back.
    """
    import datasets

    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.are_progress_bars_disabled()
    counts = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    streams = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        logger.setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        # Loading a local file would otherwise tell a server of it.
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
        seed_streams()
        yield
    finally:
        logger.setLevel(level)
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counts
        if not bars:
            datasets.enable_progress_bars()
        random.setstate(streams[0])
        np.random.set_state(streams[1])  # noqa: NPY002


def seed_streams() -> None:
    """Set the global random streams to where `simple_evaluate` starts; inside `quiet` only."""
    random.seed(PYTHON_SEED)
    np.random.seed(NUMPY_SEED)  # noqa: NPY002


def _refuse_unsafe(name: str, is_unsafe: Any, allowed: bool) -> None:
    if is_unsafe and not allowed:
        raise ConfigError(
            f"lm_eval: task {name!r} runs programs that models write. If that is meant, set "
            "`allow_code_execution: true`; they then run in the sandbox"
        )


def _set_fewshot(task: Any, name: str, num_fewshot: int | None) -> None:
    fixed = task.config.num_fewshot
    if num_fewshot is not None and fixed == 0 and num_fewshot:
        raise ConfigError(
            f"lm_eval: num_fewshot is {num_fewshot}, but task {name!r} is made for 0; remove it, "
            "or change the task's own file."
        )
    task.set_config(key="num_fewshot", value=(fixed or 0) if num_fewshot is None else num_fewshot)
