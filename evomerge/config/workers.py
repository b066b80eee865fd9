"""Build the worker of one process: models, resident subjects, evaluators."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Hashable, Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from evomerge.config.cache import usable_cache
from evomerge.config.models import OpenModels, open_models
from evomerge.config.schema import RunConfig, parse_config
from evomerge.config.served import serve
from evomerge.config.shared_scores import SharedScores
from evomerge.config.tasks import build_tasks
from evomerge.config.yaml_file import read_yaml
from evomerge.core.linear_span import LinearSpan, block_size
from evomerge.errors import ConfigError, RunError
from evomerge.evaluation.evaluator import Evaluator
from evomerge.evaluation.served_subject import ServedModel
from evomerge.evaluation.subject import Subject
from evomerge.merging.cache import TensorCache
from evomerge.merging.derived import Derived
from evomerge.merging.materialize import DTYPES
from evomerge.runtime.layer_worker import LayerWorker
from evomerge.runtime.placement import pick_device, use_threads
from evomerge.runtime.worker import MergeInputs, ScoreMemory, Worker
from evomerge.storage.run_store import RunFolder
from evomerge.storage.shared_ledger import SharedLedger

PREFIX_GRAMS = "prefix_grams"  # key in derived.npz beside those of `Derived.to_arrays`


def derived_bytes(derived: Derived, span: LinearSpan | None) -> bytes:
    """Return the content of derived.npz."""
    arrays = dict(derived.to_arrays())
    if span is not None:
        arrays[PREFIX_GRAMS] = span.prefix
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # numpy types every keyword as a flag
    return buffer.getvalue()


def load_derived(
    folder: RunFolder, models: OpenModels, cache: TensorCache | None
) -> tuple[Derived, LinearSpan | None]:
    """Return the Gram matrices saved with a run, and the way to whatever is in the cache.

    Saved rather than computed again: replay and every worker must see the same bits.

    Raises:
        RunError: The file is missing or damaged.
    """
    try:
        with folder.derived.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        derived = Derived.from_arrays(arrays, models.space, models.sources, cache)
    except OSError as error:
        raise RunError(f"{folder.derived}: cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        raise RunError(f"{folder.derived}: is damaged: {error}") from None
    if PREFIX_GRAMS not in arrays:
        return derived, None
    n_elements = models.space.n_elements
    prefix = arrays[PREFIX_GRAMS]
    return derived, LinearSpan(models.space.sources, n_elements, block_size(n_elements), prefix)


def read_run_config(folder: RunFolder) -> RunConfig:
    """Return the resolved config of a run."""
    folder.require()
    return parse_config(read_yaml(folder.config), str(folder.config))


def read_sources(folder: RunFolder) -> list[dict[str, object]]:
    """Return the content of sources.json."""
    try:
        record = json.loads(folder.sources.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{folder.sources}: cannot be read: {error}") from None
    wanted = {"id", "model", "lora", "revision", "digest", "files", "tensors"}
    if not isinstance(record, list):
        raise RunError(f"{folder.sources}: expected a list of models")
    for item in record:
        if not isinstance(item, dict) or not wanted <= set(item):
            raise RunError(
                f"{folder.sources}: is damaged: a model needs {', '.join(sorted(wanted))}"
            )
    return record


def build_worker(run: Path, device: str, threads: int, name: str) -> Worker:
    """Build a worker from a run folder; this is what a Ray actor calls in its own process."""
    folder = RunFolder(run)
    config = read_run_config(folder)
    models = open_models(config, known=read_sources(folder), check=False)
    derived, _ = load_derived(folder, models, usable_cache(config.runtime.cache))
    inputs = MergeInputs(models.space, models.sources, derived)
    tasks = build_tasks(config).search
    worker = worker_of(inputs, models, tasks, device=device, threads=threads, name=name)
    worker.memory = open_memory(config, models, tasks, threads=threads)
    return worker


def open_memory(
    config: RunConfig, models: OpenModels, evaluators: Mapping[str, Evaluator], *, threads: int
) -> ScoreMemory | None:
    """Return the ledger that `runtime.ledger` names, for a search's worker; None without one.

    Raises:
        UnavailableError: It cannot be used.
    """
    if config.runtime.ledger is None:
        return None
    ledger = SharedLedger(Path(config.runtime.ledger))
    device = pick_device(config.runtime.device)
    return SharedScores(ledger, evaluators, donor=models.donor, device=device, threads=threads)


def worker_of(
    inputs: MergeInputs,
    models: OpenModels,
    evaluators: Mapping[str, Evaluator],
    *,
    device: str,
    threads: int,
    name: str = "in-process",
) -> Worker:
    """Load the resident models that the evaluators need, if any, and return a worker.

    Raises:
        ConfigError: The models have no config.json, so nothing can be loaded to score.
        SourceError: transformers cannot load the donor.
    """
    use_threads(threads)
    where = pick_device(device)
    subjects: dict[str, Subject] = {}
    served: dict[Hashable, ServedModel] = {}
    scored: dict[str, tuple[Evaluator, Subject | ServedModel]] = {}
    for task, evaluator in evaluators.items():
        if evaluator.auto_class is None:
            place = evaluator.candidate.place
            if place not in served:
                served[place] = serve(evaluator.candidate, inputs, models, device=where)
            scored[task] = evaluator, served[place]
            continue
        if evaluator.auto_class not in subjects:
            subjects[evaluator.auto_class] = load_subject(models, evaluator.auto_class, where)
        scored[task] = evaluator, subjects[evaluator.auto_class]
    resident = list(subjects.values())
    if models.layers is not None:
        if served:
            raise ConfigError(
                "merge.name: layer_sequence candidates exist in this process only; score them with "
                "evaluators that do not ask a server"
            )
        layers = models.layers.inputs
        return LayerWorker(inputs, resident, scored, layers=layers, device=where, name=name)
    return Worker(inputs, resident, scored, device=where, name=name)


def load_subject(models: OpenModels, auto_class: str, device: str) -> Subject:
    """Load a resident model.

    Raises:
        ConfigError: The models have no config.json, so nothing can be loaded to score.
        SourceError: transformers cannot load the donor.
    """
    if not (models.donor / "config.json").is_file():
        raise ConfigError(f"{models.donor}: has no config.json; scoring needs a whole model folder")
    return Subject.load(
        models.donor,
        auto_class=auto_class,
        device=device,
        # That of the files, as in the export: a config.json may say another one.
        dtype=DTYPES[models.space.float_dtype],
        trust_remote_code=models.trust_remote_code,
        name=models.space.sources[0],
        untied=models.space.untied,
    )
