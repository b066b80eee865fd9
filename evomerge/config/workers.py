"""Build the worker of one process: models, resident subjects, evaluators."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Hashable, Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from evomerge.config.build import keeps_margins
from evomerge.config.cache import usable_cache
from evomerge.config.engines import engine_of, refuse_engines
from evomerge.config.locate import run_at
from evomerge.config.models import OpenModels, open_models
from evomerge.config.schema import RunConfig, parse_config
from evomerge.config.served import serve
from evomerge.config.shared_scores import SharedScores
from evomerge.config.staged_models import staged_models
from evomerge.config.tasks import build_tasks
from evomerge.config.yaml_file import read_yaml
from evomerge.core.linear_span import LinearSpan, block_size
from evomerge.errors import ConfigError, RunError
from evomerge.evaluation.evaluator import Evaluator
from evomerge.evaluation.part import whole_of
from evomerge.evaluation.served_subject import ServedModel
from evomerge.evaluation.server import ServedCandidate
from evomerge.evaluation.subject import Subject
from evomerge.evaluation.vllm_engine import VllmEngine
from evomerge.evaluation.vllm_subject import VllmSubject
from evomerge.merging.cache import TensorCache
from evomerge.merging.derived import Derived
from evomerge.merging.materialize import DTYPES
from evomerge.runtime.layer_worker import LayerWorker
from evomerge.runtime.placement import (
    device_of_ray_worker,
    pick_device,
    spread_of,
    use_threads,
)
from evomerge.runtime.worker import MergeInputs, ScoreMemory, Worker
from evomerge.storage.run_store import RunFolder
from evomerge.storage.shared_ledger import SharedLedger

CANARY_EVERY = 25  # candidates, where an engine keeps more than weights
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
    block, tensors = block_size(n_elements), models.space.tensor_breaks
    return derived, LinearSpan(models.space.sources, n_elements, block, prefix, tensors)


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


def build_worker(run: Path | str, device: str, threads: int, name: str) -> Worker:
    """Build a worker from a run folder or URL; a Ray actor calls it in its own process."""
    folder = run_at(run, with_journal=False)
    config = read_run_config(folder)
    record = read_sources(folder)
    staged, notes = staged_models(config, record)
    models = open_models(staged, known=record, check=False)
    derived, _ = load_derived(folder, models, usable_cache(config.runtime.cache))
    inputs = MergeInputs(models.space, models.sources, derived)
    tasks = build_tasks(config).search
    device = device_of_ray_worker(device)
    worker = worker_of(inputs, models, tasks, device=device, threads=threads, name=name)
    equip(worker, config, models, tasks, threads=threads)
    worker.notes = notes
    return worker


def equip(
    worker: Worker,
    config: RunConfig,
    models: OpenModels,
    evaluators: Mapping[str, Evaluator],
    *,
    threads: int,
) -> None:
    """Give a search's worker the shared ledger and the canary that the config asks for.

    Raises:
        ConfigError: A canary is asked for where there is no recipe for the base model.
        UnavailableError: The ledger cannot be used.
    """
    worker.memory = open_memory(config, models, evaluators, threads=threads)
    every = config.runtime.canary_every
    if every is None:
        every = CANARY_EVERY if any(map(engine_of, evaluators.values())) else 0
    if every and models.layers is not None:
        raise ConfigError(
            "runtime.canary_every: sequences of layers have no recipe for the base model; remove it"
        )
    if every:
        worker.watch(every)


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
    return SharedScores(
        ledger,
        evaluators,
        donor=models.donor,
        device=device,
        threads=threads,
        needs_margins=keeps_margins(config, evaluators),
    )


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
        ConfigError: The models have no config.json, so nothing can be loaded to score, or an
            engine cannot hold the candidates; see `refuse_engines`.
        SourceError: transformers cannot load the donor.
    """
    use_threads(threads)
    where, spread = pick_device(device), spread_of(device)
    if spread is not None and models.layers is not None:
        raise ConfigError("merge.name: layer_sequence keeps all layers on one device; name one")
    refuse_engines(evaluators, models, device=device)
    subjects: dict[str | VllmEngine, Subject | VllmSubject] = {}
    served: dict[Hashable, ServedModel] = {}
    scored: dict[str, tuple[Evaluator, Subject | VllmSubject | ServedModel]] = {}
    for task, evaluator in evaluators.items():
        if evaluator.auto_class is None:
            candidate = _candidate_of(task, evaluator)
            if candidate.place not in served:
                served[candidate.place] = serve(candidate, inputs, models, device=where)
            scored[task] = evaluator, served[candidate.place]
            continue
        key = engine_of(evaluator) or evaluator.auto_class
        if key not in subjects:
            subjects[key] = _load(models, key, where, spread)
        scored[task] = evaluator, subjects[key]
    resident = list(subjects.values())
    if models.layers is not None:
        if served:
            raise ConfigError(
                "merge.name: layer_sequence candidates exist in this process only; score them with "
                "evaluators that do not ask a server"
            )
        layers = models.layers.inputs
        plain = [subject for subject in resident if isinstance(subject, Subject)]  # no engines
        return LayerWorker(inputs, plain, scored, layers=layers, device=where, name=name)
    return Worker(inputs, resident, scored, device=where, name=name)


def _candidate_of(task: str, evaluator: Evaluator) -> ServedCandidate:
    candidate = getattr(whole_of(evaluator), "candidate", None)
    if not isinstance(candidate, ServedCandidate):
        raise ConfigError(
            f"tasks: the evaluator of {task!r} has no `auto_class`, so that a server has to hold "
            "its candidates, and no `candidate` (a `ServedCandidate`) that says which; give it one "
            "of them"
        )
    return candidate


def _load(
    models: OpenModels,
    key: str | VllmEngine,
    device: str,
    spread: Mapping[int | str, int] | None,
) -> Subject | VllmSubject:
    """Load a resident model into transformers (key: Auto class) or an engine (key: settings)."""
    if isinstance(key, str):
        return load_subject(models, key, device, spread)
    return VllmSubject.load(
        models.donor,
        key,
        device=device,
        dtype=DTYPES[models.space.float_dtype],
        trust_remote_code=models.trust_remote_code,
        name=models.space.sources[0],
    )


def load_subject(
    models: OpenModels,
    auto_class: str,
    device: str,
    spread: Mapping[int | str, int] | None = None,
) -> Subject:
    """Load a resident model, on one device or (see `Subject.load`) spread over several.

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
        spread=spread,
    )
