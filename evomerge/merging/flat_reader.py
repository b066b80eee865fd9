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

# 4 MB of float32 per source.
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

    def parts(self, name: str, start: int, stop: int) -> tuple[list[Tensor], list[bool]]:
        """Return what the basis (s_0, s_1 - s_0, …) is made of.

        Returns:
            (K,) tensors of (n,) as they are stored, an exact task vector instead of its source,
            and (K,) whether s_0 is yet to be subtracted from it.
        """
        exact = self._exact_deltas(name)
        found = [
            source.read_range(name, start, stop) if delta is None else delta[start:stop]
            for source, delta in zip(self._sources, exact, strict=True)
        ]
        return found, [k > 0 and delta is None for k, delta in enumerate(exact)]

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

    def flat_parts(self, start: int, stop: int) -> tuple[list[Tensor], list[bool]]:
        """Return `parts` of elements [start, stop) of the flattened order, one tensor each."""
        found = []
        for tensor in self.space.merged:
            low = max(start, tensor.offset)
            high = min(stop, tensor.offset + tensor.spec.n_elements)
            if low < high:
                found.append(
                    self.parts(tensor.spec.name, low - tensor.offset, high - tensor.offset)
                )
        subtracts = [all(flags) for flags in zip(*(flags for _, flags in found), strict=True)]
        joined = []
        for k, is_difference in enumerate(subtracts):
            pieces = [tensors[k] for tensors, _ in found]
            if k and not is_difference:
                # Known exactly in some of these tensors only: float64 holds every difference.
                pieces = [
                    piece.double() - tensors[0].double() if flags[k] else piece.double()
                    for piece, (tensors, flags) in zip(pieces, found, strict=True)
                ]
            joined.append(torch.cat(_of_one_dtype(pieces)))
        return joined, subtracts


def _of_one_dtype(pieces: list[Tensor]) -> list[Tensor]:
    if len({piece.dtype for piece in pieces}) == 1:
        return pieces
    return [piece.double() for piece in pieces]
