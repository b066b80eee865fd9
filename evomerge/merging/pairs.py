"""Methods that move one model, element by element, towards another."""

from __future__ import annotations

from dataclasses import replace

from evomerge.errors import ConfigError
from evomerge.merging.operator import TensorInputs


def pair_of(tensors: TensorInputs, *, operator: str) -> TensorInputs:
    """Return the pair (a, b) as a base and its one expert.

    Args:
        tensors: A base and one expert; or two experts, with or without a base, which then
            does not count.
        operator: Name for the message.

    Raises:
        ConfigError: There are not two models.
    """
    n_experts = len(tensors.experts)
    if n_experts == 1 and tensors.base is not None:
        return tensors
    if n_experts != 2:
        raise ConfigError(
            f"{tensors.name}: {operator} merges two models, got {n_experts} experts"
            f"{'' if tensors.base is None else ' and a base'}"
        )
    a, b = tensors.experts
    return replace(tensors, base=a, experts=(b,), exact_deltas=())
