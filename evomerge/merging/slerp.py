"""SLERP: the arc between two models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from evomerge.core.genes import Gene
from evomerge.core.linear_span import slerp_weights
from evomerge.errors import ConfigError
from evomerge.merging.operator import Compat, OperatorDefaults, TensorInputs, merge_operator
from evomerge.merging.parameters import check_fields
from evomerge.merging.sphere import angle, mergekit_slerp_weights, required_gram


@merge_operator("slerp")
@dataclass(frozen=True, kw_only=True)
class Slerp(OperatorDefaults):
    """u a + v b with u = sin((1 - t) w) / sin w, v = sin(t w) / sin w, w the angle of a and b.

    The pair (a, b) is the base and its one expert; or the two models of a merge without a base;
    or, with a base and two experts, their task vectors added to the base. The angle is that of
    the whole flattened tensor. Fine-tunes of one base have nearly parallel weights, where SLERP
    is plain interpolation; task vectors are not parallel, so they are the default when there is
    a base.

    Attributes:
        t: 0 gives a, 1 gives b, bit for bit.
        space: "raw" tensors, "delta" (task vectors), or "auto": delta when there is a base
            with two experts.
        compat: "mergekit" interpolates linearly when |cos| > 0.9995; "paper" only when the
            sine is at most 1e-6.

    Source: Shoemake 1985, "Animating rotation with quaternion curves".
    Differs from mergekit: float64 angle; task vectors by default when there is a base.
    """

    needs_base: ClassVar[bool] = False
    n_models: ClassVar[int | None] = 2
    needs_gram: ClassVar[bool] = True

    t: Annotated[float, Gene(0.0, 1.0, minimum=0.0, maximum=1.0)] = 0.5
    space: Literal["auto", "raw", "delta"] = "auto"
    compat: Compat = "paper"

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor.

        Raises:
            ConfigError: There are not exactly two models, or `space` does not fit them.
        """
        n_experts, has_base = len(tensors.experts), tensors.base is not None
        if n_experts + has_base not in (2, 3) or n_experts > 2:
            raise ConfigError(
                f"{tensors.name}: slerp merges two models, got {n_experts} experts"
                f"{' and a base' if has_base else ''}"
            )
        if self.space == "delta" and not (has_base and n_experts == 2):
            raise ConfigError("slerp: `space: delta` needs a base and two experts")
        if n_experts + has_base == 2:
            u, v = self._weights(tensors, (1.0, 0.0), (1.0, 1.0))
            return tensors.weighted_sum((u, v))
        if self.space == "raw":
            u, v = self._weights(tensors, (1.0, 1.0, 0.0), (1.0, 0.0, 1.0))
            return tensors.weighted_sum((0.0, u, v))
        u, v = self._weights(tensors, (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
        return tensors.weighted_sum((1.0 - u - v, u, v))

    def _weights(
        self, tensors: TensorInputs, x: tuple[float, ...], y: tuple[float, ...]
    ) -> tuple[float, float]:
        gram = required_gram(tensors)
        if self.compat == "mergekit":
            return mergekit_slerp_weights(self.t, gram, x, y)
        return slerp_weights(self.t, angle(gram, x, y))
