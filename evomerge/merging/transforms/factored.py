"""Factors of the experts' task vectors for methods that work on the units of LoRA adapters."""

from __future__ import annotations

from evomerge.merging.low_rank import LowRank, extract
from evomerge.merging.transform import DeltaInputs


def factored(tensors: DeltaInputs, rank: int) -> tuple[LowRank, ...]:
    """Return (E,) factors, outputs first: an adapter's own, else from an SVD of the task vector.

    Args:
        tensors: Matrices; axes after the first are flattened.
        rank: Units to keep of a task vector that is no product.
    """
    known = tensors.factors or (None,) * len(tensors.deltas)
    return tuple(
        extract(delta.reshape(delta.shape[0], -1), rank) if part is None else part.turned(False)
        for delta, part in zip(tensors.deltas, known, strict=True)
    )
