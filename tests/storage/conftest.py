"""Small model folders and hand-made safetensors files."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture
def raw_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a safetensors file from any header, without checks."""

    def write(header: bytes | Mapping[str, Any], data: bytes = b"", name: str = "x") -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)
        return path

    return write


@pytest.fixture
def save_model() -> Callable[..., Path]:
    """Write a model folder with one weights file."""

    def save(
        folder: Path,
        tensors: Mapping[str, torch.Tensor],
        config: Mapping[str, Any] | None = None,
        *,
        weights: str = "model.safetensors",
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), folder / weights)
        (folder / "config.json").write_text(json.dumps(config or {}))
        return folder

    return save


@pytest.fixture
def save_adapter() -> Callable[..., Path]:
    """Write a PEFT adapter folder; tensor names go without `base_model.model.`."""

    def save(folder: Path, tensors: Mapping[str, torch.Tensor], **config: Any) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        named = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
        save_file(named, folder / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", **config}
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        return folder

    return save


@pytest.fixture
def shared_data() -> Path:
    """The folder of real small models; skips where it is not mounted."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not present on this machine")
    return SHARED
