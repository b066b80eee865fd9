"""LiNeS after any merge method: the merged task vector grows with the depth of the layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.core.genes import Gene
from evomerge.core.tensor_names import place
from evomerge.errors import ConfigError, nearest
from evomerge.merging.operator import FiniteResults, MergeOperator, OperatorDefaults, TensorInputs
from evomerge.merging.parameters import check_fields

# Parameters of a recipe that belong to the scale, not to the merge method.
PREFIX = "layer_scale."
ALPHA, BETA = f"{PREFIX}alpha", f"{PREFIX}beta"


@dataclass(frozen=True, kw_only=True)
class LayerScale:
    """alpha + beta * l / (L - 1) for layer l of L; alpha for tensors outside the layers.

    Attributes:
        alpha: Scale of the first layer.
        beta: What the scale of the last layer is above it.

    Source: Wang et al. 2024 (LiNeS), arXiv:2410.17146.
    Differs from the authors' code: the layer is that of the model's own blocks, never the index of
    an expert in a layer.
    """

    alpha: Annotated[float, Gene(0.0, 1.0)]
    beta: Annotated[float, Gene(0.0, 1.5)]

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self, where=PREFIX)

    def at(self, name: str, n_layers: int) -> float:
        """Return the scale of a tensor in a model of `n_layers` layers.

        Raises:
            ConfigError: The model has no such layer.
        """
        layer = place(name).layer
        if layer is None:
            return self.alpha
        if layer >= n_layers:
            raise ConfigError(f"{name}: layer_scale needs the number of layers, got {n_layers}")
        return self.alpha + self.beta * layer / max(n_layers - 1, 1)


@dataclass(frozen=True)
class LayerScaled(OperatorDefaults):
    """theta_0 + s * (merged - theta_0), `merged` being what another merge method gives.

    Scale 1 is that method bit for bit, and scale 0 the base. Otherwise the method computes in
    float32, and the sum is rounded once.

    Attributes:
        operator: The merge method.
        scale: Gives s for each tensor.
    """

    operator: MergeOperator
    scale: LayerScale

    def fallback(self, name: str, shape: tuple[int, ...]) -> str | None:
        """Return how the method merges such a tensor instead, or None."""
        own = getattr(self.operator, "fallback", None)
        return None if own is None else own(name, shape)

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor.

        Raises:
            ConfigError: There is no base, or the number of layers is not known.
        """
        if tensors.base is None:
            raise ConfigError(f"{tensors.name}: layer_scale scales task vectors and needs a base")
        scale = self.scale.at(tensors.name, tensors.n_layers)
        if scale == 1.0:
            return self.operator.merge(tensors)
        if scale == 0.0:
            return tensors.weighted_sum([1.0, *(0.0 for _ in tensors.experts)])
        base = tensors.base.float()
        # Its own record of finite results: this one may overflow where the method's did not.
        inner = replace(tensors, out_dtype=base.dtype, into=None, finite=FiniteResults())
        # A new tensor, since the method may return a view of a source's file.
        delta = self.operator.merge(inner) - base
        return tensors.round(delta.mul_(scale).add_(base))


def own_params(params: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Return a recipe's parameters without those of the scale."""
    return {name: value for name, value in params.items() if not name.startswith(PREFIX)}


def layer_scales(params: Mapping[str, FloatArray]) -> list[LayerScale]:
    """Return the scale of every group, [] for a recipe without one.

    Args:
        params: A recipe's parameters. `layer_scale.alpha` and `layer_scale.beta` are (G,);
            without the latter beta is 1 - alpha, the paper's form for a single model.

    Raises:
        ConfigError: A name is unknown, alpha is missing, or a shape is not (G,).
    """
    found = {name: value for name, value in params.items() if name.startswith(PREFIX)}
    for name, value in found.items():
        if name not in (ALPHA, BETA):
            raise ConfigError(
                f"recipe: params.{name} is unknown.{nearest(name, (ALPHA, BETA))} "
                f"Known: {ALPHA}, {BETA}."
            )
        if value.ndim != 1:
            raise ConfigError(
                f"recipe: params.{name} must be ({len(value)},), one number per group, "
                f"is {value.shape}"
            )
    if not found:
        return []
    if ALPHA not in found:
        raise ConfigError(f"recipe: params.{ALPHA} is missing: {BETA} alone is no scale")
    alphas = found[ALPHA].tolist()
    betas = found[BETA].tolist() if BETA in found else [1.0 - alpha for alpha in alphas]
    return [LayerScale(alpha=a, beta=b) for a, b in zip(alphas, betas, strict=True)]
