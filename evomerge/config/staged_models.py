"""A run's models as this machine reads them: from its own hub cache, or from copies on its disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.config.schema import ModelConfig, RunConfig
from evomerge.runtime.staging import Staged, Staging
from evomerge.storage.hub import on_this_machine


def staged_models(
    config: RunConfig, record: Sequence[Mapping[str, Any]]
) -> tuple[RunConfig, tuple[str, ...]]:
    """Return the config with the paths to read, and a note for every model without its copy.

    A hub model that the run's first machine downloaded is taken from this machine's own cache.

    Copies keep the sizes and times of the files, by which `open_models` knows them from the run's
    record: a model that was changed since is refused as it would be without staging.

    Args:
        config: Of a run, with absolute paths.
        record: Its sources.json.

    Raises:
        SourceError: A model cannot be read or downloaded, or changed while it was copied.
    """
    wanted = config.runtime.staging
    staging = None if wanted is None else Staging(Path(wanted.folder), wanted.max_bytes)
    found: dict[str | None, Staged] = {}
    for model in _models(config):
        for path in (model.model, model.lora):
            if path is not None and path not in found:
                here = on_this_machine(Path(path))
                digests = _digests(path, record)
                found[path] = Staged(here) if staging is None else staging.stage(here, digests)

    def moved(model: ModelConfig) -> ModelConfig:
        lora = None if model.lora is None else str(found[model.lora].path)
        return model.model_copy(update={"model": str(found[model.model].path), "lora": lora})

    base = None if config.base_model is None else moved(config.base_model)
    changes = {"base_model": base, "models": [moved(model) for model in config.models]}
    notes = tuple(staged.note for staged in found.values() if staged.note)
    return config.model_copy(update=changes), notes


def _models(config: RunConfig) -> list[ModelConfig]:
    return [*([config.base_model] if config.base_model else []), *config.models]


def _digests(path: str, record: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the digests of what a folder holds: its own, or those of what is made with it."""
    own = [str(r["digest"]) for r in record if r["model"] == path and r["lora"] is None]
    return own[:1] or [str(r["digest"]) for r in record if path in (r["model"], r["lora"])]
