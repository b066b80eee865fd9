"""Layer swapping: the outer layers of one expert, the middle layers of another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from evomerge.core.genes import Gene
from evomerge.core.tensor_names import place
from evomerge.errors import ConfigError
from evomerge.merging.operator import OperatorDefaults, TensorInputs, merge_operator
from evomerge.merging.parameters import check_fields


@merge_operator("layer_swap")
@dataclass(frozen=True, kw_only=True)
class LayerSwap(OperatorDefaults):
    """The first expert's bottom and top layers and the second's in between, tensor by tensor.

    The layers next to the swapped ones are the mean of the two. Tensors outside the layers,
    embeddings and head among them, are the first expert's (in the paper, the one that knows
    the language; the second knows the task). A base is not used.

    Attributes:
        bottom: Fraction of the layers, from the bottom, that are the first expert's, rounded to
            whole layers; 5 of 32 in the paper.
        top: The same from the top; 2 of 32 in the paper.
        bottom_blend: Layers above the bottom ones that are the mean of both.
        top_blend: Layers below the top ones that are the mean of both.

    Source: Bandarkar et al. 2024, arXiv:2410.01335.
    Differs from the paper: fractions instead of numbers of layers, so that a range fits any
    depth. Where bottom and top meet, the first expert has all layers.
    """

    needs_base: ClassVar[bool] = False
    n_models: ClassVar[int | None] = 2
    sliceable: ClassVar[bool] = True

    bottom: Annotated[float, Gene(0.0, 0.34, minimum=0.0, maximum=1.0)] = 5 / 32
    top: Annotated[float, Gene(0.0, 0.17, minimum=0.0, maximum=1.0)] = 2 / 32
    bottom_blend: int = 1
    top_blend: int = 1

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)
        if self.bottom_blend < 0 or self.top_blend < 0:
            raise ConfigError("layer_swap: bottom_blend and top_blend count layers from 0 up")

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor.

        Raises:
            ConfigError: There are not exactly two models, or the number of layers is not known.
        """
        # A base with one expert counts as two models.
        pair = tensors.experts if len(tensors.experts) == 2 else tensors.sources
        if len(pair) != 2:
            raise ConfigError(f"{tensors.name}: layer_swap merges two models, got {len(pair)}")
        share = self._second_share(tensors)
        n_others = len(tensors.sources) - 2
        return tensors.weighted_sum((*(0.0 for _ in range(n_others)), 1.0 - share, share))

    def _second_share(self, tensors: TensorInputs) -> float:
        layer, n_layers = place(tensors.name).layer, tensors.n_layers
        if layer is None:
            return 0.0
        if layer >= n_layers:
            raise ConfigError(f"{tensors.name}: layer_swap needs the number of layers")
        below_top = n_layers - math.floor(self.top * n_layers + 0.5) - 1 - layer
        above_bottom = layer - math.floor(self.bottom * n_layers + 0.5)
        if above_bottom < 0 or below_top < 0:
            return 0.0
        is_blend = above_bottom < self.bottom_blend or below_top < self.top_blend
        return 0.5 if is_blend else 1.0
