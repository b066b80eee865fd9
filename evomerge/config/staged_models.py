"""A run's models, read from a copy on this machine's own disk where the config asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.config.schema import ModelConfig, RunConfig
from evomerge.runtime.staging import Staging


def staged_models(
    config: RunConfig, record: Sequence[Mapping[str, Any]]
) -> tuple[RunConfig, tuple[str, ...]]:
    """Return the config with the paths of copies, and a note for every model that has none.

    Copies keep the sizes and times of the files, by which `open_models` knows them from the run's
    record: a model that was changed since is refused as it would be without staging.

    Args:
        config: Of a run, with absolute paths.
        record: Its sources.json.

    Raises:
        SourceError: A model cannot be read, or changed while it was copied.
    """
    wanted = config.runtime.staging
    if wanted is None:
        return config, ()
    staging = Staging(Path(wanted.folder), wanted.max_bytes)
    found = {}
    for path in dict.fromkeys(
        path for model in _models(config) for path in (model.model, model.lora) if path is not None
    ):
        found[path] = staging.stage(Path(path), _digests(path, record))

    def moved(model: ModelConfig) -> ModelConfig:
        paths = {"model": str(found[model.model].path)}
        if model.lora is not None:
            paths["lora"] = str(found[model.lora].path)
        return model.model_copy(update=paths)

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
