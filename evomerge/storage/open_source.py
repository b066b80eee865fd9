"""open_source: turn a path into the right kind of tensor source."""

from __future__ import annotations

from pathlib import Path

from evomerge.errors import SourceError
from evomerge.storage.lora_config import ADAPTER_CONFIG_FILE, adapter_base_name
from evomerge.storage.lora_source import LoraSource
from evomerge.storage.model_folder import INDEX_FILE, SINGLE_FILE, ModelFolder


def is_adapter_folder(path: Path) -> bool:
    """Return whether `path` is a folder with a PEFT adapter_config.json."""
    return (path / ADAPTER_CONFIG_FILE).exists()


def open_source(
    id: str,
    path: Path,
    *,
    lora: Path | None = None,
    base: ModelFolder | None = None,
    trust_remote_code: bool = False,
) -> ModelFolder | LoraSource:
    """Return the model at `path` as a tensor source, with a LoRA adapter applied if any.

    Args:
        id: Name of the source in recipes.
        path: A model folder, a .safetensors file, or an adapter folder (then `base` is needed).
        lora: Adapter folder to apply to the model at `path`.
        base: The opened base of the merge. An adapter at `path` is applied to it; when it is
            the model at `path`, it is not opened again. Only an adapter on this very model
            gives exact deltas, which are relative to it.
        trust_remote_code: Accept a config.json that names code of its own.

    Raises:
        SourceError: The files are missing, broken or unsafe, or an adapter has no base.
    """
    if lora is not None:
        if base is not None and base.path.resolve() == path.resolve():
            return LoraSource(id, lora, base)
        under = ModelFolder(id, path, trust_remote_code=trust_remote_code)
        return LoraSource(id, lora, under, knows_delta=False)
    if not is_adapter_folder(path):
        return ModelFolder(id, path, trust_remote_code=trust_remote_code)
    if any((path / name).exists() for name in (SINGLE_FILE, INDEX_FILE)):
        raise SourceError(
            f"{path}: holds both a model and a LoRA adapter. Say which you mean: set `lora:` to "
            f"this folder too, or move {ADAPTER_CONFIG_FILE} away."
        )
    if base is None:
        raise SourceError(
            f"{path}: is a LoRA adapter on {adapter_base_name(path)!r}, and no base model is "
            "given. Give a `base_model:`, or the model under it: `model: PATH` with `lora:` set "
            "to this folder."
        )
    return LoraSource(id, path, base)
