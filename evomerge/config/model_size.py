"""How large the merged model is."""

from __future__ import annotations

from collections.abc import Iterable

from evomerge.algorithms.noisy_lineage import MAX_NOISE
from evomerge.config.models import OpenModels
from evomerge.config.schema import RunConfig
from evomerge.core.model_space import TensorSpec
from evomerge.merging.ancestor_store import MAX_BYTES, NOISE_BYTES
from evomerge.merging.plan import PIECE

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def specs_bytes(specs: Iterable[TensorSpec]) -> int:
    """Return the bytes of tensors; of dtypes a merge does not keep, as float32."""
    return sum(spec.n_elements * _BYTES.get(spec.dtype, 4) for spec in specs)


def model_bytes(models: OpenModels) -> int:
    """Return the bytes of one merged model on disk or in memory."""
    return specs_bytes(tensor.spec for tensor in models.space.tensors)


def is_from_scratch(config: RunConfig) -> bool:
    """Return whether children get noise, and recipes name it and ancestors."""
    return bool(config.algorithm.get("mutation", 0))


def merge_bytes(models: OpenModels, config: RunConfig) -> int:
    """Return the bytes that a worker needs to merge a candidate, beside the model it is put into.

    That is one tensor name over all sources and a float32 accumulator. With noise and ancestors
    there are also an ancestor's tensor, every term's piece of one, and what is kept of them: at
    most twice the model per candidate.
    """
    space = models.space
    largest = 4 * max((tensor.spec.n_elements for tensor in space.merged), default=0)
    n_bytes = largest * (len(space.sources) + 2)
    if not is_from_scratch(config):
        return n_bytes
    terms = int(config.algorithm.get("max_noise", MAX_NOISE)) + 3
    kept = min(MAX_BYTES + NOISE_BYTES, 8 * space.n_elements * config.budget.evaluations)
    return n_bytes + largest + terms * min(largest, 4 * PIECE) + kept
