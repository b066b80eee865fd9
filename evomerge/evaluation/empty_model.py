"""A model's folder without its weights, for engines that load them themselves."""

from __future__ import annotations

from pathlib import Path

import torch

from evomerge.errors import SourceError, first_line
from evomerge.evaluation.resident import (
    Loaded,
    most_tokens,
    quiet,
    take_generation_config,
    tensor_files,
)


def empty_model(folder: Path, *, auto_class: str, trust_remote_code: bool) -> Loaded:
    """Return what is known of the model of `folder` without its weights: config, names, limits.

    Args:
        folder: As for `load_model`.
        auto_class: The transformers Auto class.
        trust_remote_code: Run code that comes with the model.

    Raises:
        SourceError: transformers does not know the model.
    """
    import transformers

    files = tensor_files(folder)
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
        with quiet(), torch.device("meta"):
            model = getattr(transformers, auto_class).from_config(
                config, trust_remote_code=trust_remote_code
            )
        if (folder / "generation_config.json").is_file():
            model.generation_config = transformers.GenerationConfig.from_pretrained(
                folder, local_files_only=True
            )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise SourceError(
            f"{folder}: {auto_class} cannot be made of its config ({first_line(error)})"
        ) from error
    return Loaded(
        folder=folder,
        files=files,
        model=model,
        device="meta",
        uninitialised=(),
        weight_map=None,
        why_unmapped="it is a model without weights",
        max_tokens=most_tokens(model),
        generation_eos=take_generation_config(model),
        trust_remote_code=trust_remote_code,
        untied=False,
    )
