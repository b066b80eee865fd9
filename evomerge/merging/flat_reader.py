"""Reading sources in the flattened order of merged tensors, as (base, differences).

Shape letters: K sources, n elements of a range.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

from evomerge.core.model_space import ModelSpace
from evomerge.errors import ConfigError
from evomerge.merging.source import TensorSource

# 8 MB of float64 per source.
PIECE = 1 << 20


class FlatReader:
    """The K sources of a space over any range of elements of one tensor.

    A LoRA source's exact delta is kept while the same tensor is read, so that a tensor read
    in pieces multiplies its factors once.
    """

    def __init__(self, space: ModelSpace, sources: Mapping[str, TensorSource]) -> None:
        """Args: space: the aligned models; sources: every one of them by id."""
        missing = [name for name in space.sources if name not in sources]
        if missing:
            raise ConfigError(f"no source is open for {', '.join(map(repr, missing))}")
        self.space = space
        self._sources = [sources[name] for name in space.sources]
        self._exact: tuple[str, tuple[Tensor | None, ...]] = ("", ())

    def _exact_deltas(self, name: str) -> tuple[Tensor | None, ...]:
        if self._exact[0] != name:
            deltas = tuple(
                source.exact_delta(name) if self.space.has_base and k else None
                for k, source in enumerate(self._sources)
            )
            flat = tuple(None if delta is None else delta.reshape(-1) for delta in deltas)
            self._exact = (name, flat)
        return self._exact[1]

    def difference(self, source: int, name: str, start: int, stop: int) -> Tensor:
        """Return (n,) float32 task vector of one source, as `TensorInputs.deltas` has it."""
        exact = self._exact_deltas(name)[source]
        if exact is not None:
            return exact[start:stop].float()
        base = self._sources[0].read_range(name, start, stop).float()
        return self._sources[source].read_range(name, start, stop).float() - base

    def basis(self, name: str, start: int, stop: int) -> Tensor:
        """Return (K, n) float64: s_0 and s_k - s_0, subtracted in float64."""
        exact = self._exact_deltas(name)
        out = torch.empty((len(self._sources), stop - start), dtype=torch.float64)
        out[0] = self._sources[0].read_range(name, start, stop)
        for k, source in enumerate(self._sources[1:], start=1):
            delta = exact[k]
            if delta is None:
                out[k] = source.read_range(name, start, stop)
                out[k] -= out[0]
            else:
                out[k] = delta[start:stop]
        return out

    def ranges(
        self, piece: int = PIECE, *, names: Collection[str] | None = None
    ) -> Iterator[tuple[str, int, int]]:
        """Yield (tensor name, start, stop) pieces that cover every merged tensor in order.

        Args:
            piece: Most elements of a piece.
            names: Only these tensors; None for all.
        """
        for tensor in self.space.merged:
            if names is not None and tensor.spec.name not in names:
                continue
            for start in range(0, tensor.spec.n_elements, piece):
                yield tensor.spec.name, start, min(start + piece, tensor.spec.n_elements)

    def flat_basis(self, start: int, stop: int) -> Tensor:
        """Return (K, n) float64 basis over elements [start, stop) of the flattened order."""
        parts: list[Tensor] = []
        for tensor in self.space.merged:
            low = max(start, tensor.offset)
            high = min(stop, tensor.offset + tensor.spec.n_elements)
            if low < high:
                parts.append(
                    self.basis(tensor.spec.name, low - tensor.offset, high - tensor.offset)
                )
        return torch.cat(parts, dim=1)
