"""NearSwap: move each weight of one model towards another's, by at most a fixed step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from evomerge.core.genes import Gene
from evomerge.merging.operator import Compat, OperatorDefaults, TensorInputs, merge_operator
from evomerge.merging.pairs import pair_of
from evomerge.merging.parameters import check_fields
from evomerge.merging.passes import write_in_passes
from evomerge.merging.sums import ROW, square_rows


@merge_operator("nearswap")
@dataclass(frozen=True, kw_only=True)
class NearSwap(OperatorDefaults):
    """(1 - v) a + v b with v = min(step / |b - a|, 1): b where it is near a, else one step to it.

    The pair (a, b) is the base and its one expert, or two models; with a base and two experts it
    is the experts. As b - a is only clipped, this is a + clip(b - a, -step, step).

    Attributes:
        t: 0 gives a. `compat: paper`: the step in units of the root mean square of b - a over the
            tensor, so that a model with twice the changes merges the same way. `compat:
            mergekit`: the step itself, in units of the weights; search 1e-5 to 1e-2.
        compat: Unit of `t`.

    Source: alchemonaut 2024, QuartetAnemoi-70B-t0.0001 (model card); mergekit's `nearswap`.
    Differs from them: the unit of `t`, unless `compat: mergekit`.
    """

    needs_base: ClassVar[bool] = False
    n_models: ClassVar[int | None] = 2

    t: Annotated[float, Gene(0.01, 2.0, minimum=0.0)] = 0.1
    compat: Compat = "paper"

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor.

        Raises:
            ConfigError: There are not exactly two models.
        """
        pair = pair_of(tensors, operator="nearswap")
        assert pair.base is not None
        a, b = pair.base.reshape(-1), pair.experts[0].reshape(-1)
        step = self.t
        if self.compat == "paper":
            squares: list[float] = []
            for _, (delta,) in pair.delta_slices([0], run=ROW):
                squares += square_rows(delta)
            step *= math.sqrt(math.fsum(squares) / max(a.numel(), 1))

        def merge(at: slice, deltas: list[Tensor]) -> Tensor:
            (delta,) = deltas
            far = a[at].float() + delta.clamp(-step, step)
            # `where` instead of a + delta: near weights become b's bit for bit.
            return torch.where(delta.abs() <= step, b[at].float(), far)

        return write_in_passes(pair, merge)
