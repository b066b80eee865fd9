"""What a search that is submitted to a cluster takes along: a config without relative paths."""

from __future__ import annotations

import re
from pathlib import Path

from evomerge.config.build import resolve_sections
from evomerge.config.schema import ModelConfig, RunConfig
from evomerge.errors import ConfigError
from evomerge.storage.named_path import named_path

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_PINNED = re.compile(r"[A-Za-z0-9._-]+(\[[A-Za-z0-9._,-]+\])?==[A-Za-z0-9.!+_-]+")
CONFIG_NAME = "config.yaml"


def portable_config(config: RunConfig, base_dir: Path) -> RunConfig:
    """Return the config with absolute paths, good for machines that mount them at the same place.

    Nothing is looked up, but for one question: "org/name" is a Hub id unless there is such a path
    here. The number of workers and what depends on it is left to the cluster.

    Raises:
        ConfigError: A section does not fit the class it names.
    """
    resolved = resolve_sections(config, base_dir)
    base = None if config.base_model is None else _portable(config.base_model, base_dir)
    folders = {key: getattr(resolved.runtime, key) for key in ("cache", "ledger", "staging")}
    return config.model_copy(
        update={
            "base_model": base,
            "models": [_portable(model, base_dir) for model in config.models],
            "tasks": resolved.tasks,
            "runtime": config.runtime.model_copy(update=folders),
        }
    )


def _portable(model: ModelConfig, base_dir: Path) -> ModelConfig:
    refs = {"model": model.model, "lora": model.lora}
    paths = {key: _absolute(ref, base_dir) for key, ref in refs.items() if ref is not None}
    return model.model_copy(update=paths)


def _absolute(ref: str, base_dir: Path) -> str:
    path = (base_dir / named_path(ref)).absolute()
    return ref if _HUB_ID.fullmatch(ref) and not path.exists() else str(path)


def read_requirements(path: Path) -> list[str]:
    """Return the lines of a requirements file; every package must be pinned with ``==``.

    Raises:
        ConfigError: The file cannot be read, or a line is not ``NAME==VERSION``.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    wanted = [line.partition("#")[0].strip() for line in lines]
    for number, line in enumerate(wanted, start=1):
        if line and not _PINNED.fullmatch(line):
            raise ConfigError(
                f"{path}: line {number}: {line!r} is not NAME==VERSION; driver and workers must "
                "all get the same packages, also after a restart"
            )
    return [line for line in wanted if line]
