"""LiNeS: task vectors grow with the depth of the layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from evomerge.core.genes import Gene
from evomerge.core.tensor_names import place
from evomerge.errors import ConfigError
from evomerge.merging.operator import OperatorDefaults, TensorInputs, merge_operator
from evomerge.merging.parameters import check_fields
from evomerge.merging.task_arithmetic import TaskArithmetic
from evomerge.merging.ties import Ties


@merge_operator("lines")
@dataclass(frozen=True, kw_only=True)
class Lines(OperatorDefaults):
    """theta_0 + (alpha + beta * l / (L - 1)) * tau, tau the merged task vector of `method`.

    l is the tensor's layer, of L; tensors outside the layers, and models of one layer, have
    l = 0. Alpha 1 and beta 0 give the method itself.

    Attributes:
        weights: (E,) one per expert.
        alpha: Scale of the first layer.
        beta: What the scale of the last layer is above it.
        density: Fraction of elements that `ties` keeps; not used by `task_arithmetic`.
        method: What merges the task vectors, with its defaults otherwise.

    Source: Wang et al. 2024, arXiv:2410.17146.
    Differs from the paper: alpha is a parameter, not the quotient of summed magnitudes before
    and after merging. The layer is read from the model's own blocks, never from an expert's
    index.
    """

    needs_thresholds: ClassVar[bool] = True

    weights: tuple[Annotated[float, Gene(0.0, 1.0)], ...]
    alpha: Annotated[float, Gene(0.0, 1.0)]
    beta: Annotated[float, Gene(0.0, 1.5)]
    density: Annotated[float, Gene(0.05, 1.0, minimum=0.0, maximum=1.0)] = 0.2
    method: Literal["task_arithmetic", "ties"] = "task_arithmetic"

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)

    def fallback(self, shape: tuple[int, ...]) -> str | None:
        """Return how a tensor of this shape is merged instead, or None."""
        if self.method == "task_arithmetic":
            return None
        return Ties(weights=self.weights, density=self.density).fallback(shape)

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor.

        Raises:
            ConfigError: The number of layers is not known.
        """
        scale = self._scale(tensors)
        if self.method == "task_arithmetic":
            return TaskArithmetic(weights=self.weights, lambda_=scale).merge(tensors)
        return Ties(weights=self.weights, density=self.density, lambda_=scale).merge(tensors)

    def _scale(self, tensors: TensorInputs) -> float:
        layer = place(tensors.name).layer
        if layer is None:
            return self.alpha
        if layer >= tensors.n_layers:
            raise ConfigError(f"{tensors.name}: lines needs the number of layers")
        return self.alpha + self.beta * layer / max(tensors.n_layers - 1, 1)
