"""Norm share: each expert weighs as much as it changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.core.genes import Gene
from evomerge.errors import ConfigError
from evomerge.merging.operator import OperatorDefaults, TensorInputs, merge_operator
from evomerge.merging.parameters import check_fields
from evomerge.merging.sphere import required_gram
from evomerge.merging.weights import over_base


@merge_operator("norm_share")
@dataclass(frozen=True, kw_only=True)
class NormShare(OperatorDefaults):
    """theta_0 + lambda_ * sum_k a_k delta_k with a_k = w_k |delta_k|^2q / sum_j w_j |delta_j|^2q.

    An expert without a change has no share unless q is 0; where no expert has one, the result
    is the base.

    ===========  ===================  =====================================
    `level`      |delta_k| is of       weights of
    ===========  ===================  =====================================
    ``tensor``   this tensor           VaRM of FuseChat, the fusion of SCE
    ``layer``    its layer             FRANK
    ``model``    all merged tensors    MetaGPT
    ===========  ===================  =====================================

    Attributes:
        weights: (E,) one per expert, none negative; all equal in the papers.
        q: How much the size of the change counts: 0 gives the weighted mean, below 0 small
            changes count more; 1 in the papers.
        lambda_: Common scale.
        level: See the table. Tensors outside the layers form two groups, before and after them.

    Source: Wan et al. 2024 (VaRM, arXiv:2402.16107; SCE, arXiv:2408.07990), FRANK
    (arXiv:2505.16151), Zhou et al. 2024 (MetaGPT, arXiv:2406.11385).
    Differs from the papers: weights, q and lambda; SCE's selection and vote are not part of it,
    nor are FRANK's priors from attention. Norms are float64.
    """

    needs_gram: ClassVar[bool] = True

    weights: tuple[Annotated[float, Gene(0.0, 1.0, minimum=0.0)], ...]
    q: Annotated[float, Gene(-1.0, 2.0)] = 1.0
    lambda_: Annotated[float, Gene(0.0, 1.5)] = 1.0
    level: Literal["tensor", "layer", "model"] = "tensor"

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)
        if not any(self.weights):
            raise ConfigError("norm_share: the weights are all zero; their shares are not defined")

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor."""
        gram = required_gram(tensors) if self.level == "tensor" else tensors.pooled_gram(self.level)
        shares = self.lambda_ * self._shares(gram.diagonal()[1:])
        return tensors.weighted_sum(over_base(shares.tolist()))

    def _shares(self, squares: FloatArray) -> FloatArray:
        """Return (E,) shares for squared lengths (E,) of the task vectors."""
        weights = np.array(self.weights, dtype=np.float64)
        if self.q == 0.0:
            mean: FloatArray = weights / weights.sum()
            return mean
        used = (weights > 0.0) & (squares != 0.0)  # NaN is used, to be seen
        if not used.any():
            return np.zeros(len(weights))
        logs = self.q * np.log(squares[used]) + np.log(weights[used])
        sizes = np.exp(logs - logs.max())
        shares = np.zeros(len(weights))
        shares[used] = sizes / sizes.sum()
        return shares
