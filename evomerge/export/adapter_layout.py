"""Where a changed tensor goes in a PEFT adapter, judged by its name and shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from evomerge.core.tensor_names import place
from evomerge.errors import ConfigError

# linear: factors of an nn.Linear; conv1d: of GPT-2's (in, out) Conv1D; embedding: of an
# nn.Embedding; bias: beside the factors of its module; whole: the module in `modules_to_save`.
Slot = Literal["linear", "conv1d", "embedding", "bias", "whole"]

# Families whose attention and MLP matrices are transformers' Conv1D.
_CONV1D_FAMILIES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_EMBEDDING = re.compile(
    r"(?i)(?:^|\.)(?:(?!embed_out)\w*embed\w*|wte|wpe|shared|relative_attention_bias)$"
)


def has_conv1d(config: Mapping[str, Any]) -> bool:
    """Return whether the model of this config.json has Conv1D layers."""
    return config.get("model_type") in _CONV1D_FAMILIES


def slot_of(name: str, shape: tuple[int, ...], *, conv1d: bool) -> Slot:
    """Return where the tensor `name` goes.

    Raises:
        ConfigError: It is a bare parameter, for which PEFT's LoRA has no place.
    """
    module, _, leaf = name.rpartition(".")
    if leaf not in ("weight", "bias") or not module:
        raise ConfigError(
            f"{name}: the merge changes a parameter that is not a layer's weight or bias, and a "
            "LoRA adapter cannot hold it. Leave out --adapter to write the full model."
        )
    if leaf == "bias":
        return "bias"
    kind = place(name).kind
    if len(shape) != 2 or kind == "router":
        return "whole"
    if _EMBEDDING.search(module):
        return "embedding"
    return "conv1d" if conv1d and kind != "head" else "linear"


def task_type(architecture: str) -> str | None:
    """Return PEFT's task type where it adds nothing but a class to load with."""
    is_causal = architecture.endswith(("ForCausalLM", "LMHeadModel"))
    return "CAUSAL_LM" if is_causal else None
