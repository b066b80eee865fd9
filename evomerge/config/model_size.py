"""How large the merged model is."""

from __future__ import annotations

from collections.abc import Iterable

from evomerge.config.models import OpenModels
from evomerge.core.model_space import TensorSpec

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def specs_bytes(specs: Iterable[TensorSpec]) -> int:
    """Return the bytes of tensors; of dtypes a merge does not keep, as float32."""
    return sum(spec.n_elements * _BYTES.get(spec.dtype, 4) for spec in specs)


def model_bytes(models: OpenModels) -> int:
    """Return the bytes of one merged model on disk or in memory."""
    return specs_bytes(tensor.spec for tensor in models.space.tensors)
