"""Methods that move one model, element by element, towards another."""

from __future__ import annotations

from torch import Tensor

from evomerge.errors import ConfigError
from evomerge.merging.operator import TensorInputs


def pair_of(tensors: TensorInputs, *, operator: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return (a, b, b - a), all float32: the base and its one expert, or the two experts.

    Args:
        tensors: A base and one expert; or two experts, with or without a base, which then
            does not count.
        operator: Name for the message.

    Raises:
        ConfigError: There are not two models.
    """
    n_experts = len(tensors.experts)
    if n_experts == 1 and tensors.base is not None:
        return tensors.base.float(), tensors.experts[0].float(), tensors.deltas[0]
    if n_experts != 2:
        raise ConfigError(
            f"{tensors.name}: {operator} merges two models, got {n_experts} experts"
            f"{'' if tensors.base is None else ' and a base'}"
        )
    a, b = (expert.float() for expert in tensors.experts)
    return a, b, b - a
