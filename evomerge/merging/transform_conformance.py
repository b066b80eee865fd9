"""The conformance suite of delta transforms; public as `evomerge.testing.check_delta_transform`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.merging.transform import DeltaInputs, DeltaTransform, delta_transforms, mean_parts

_LAYER = "model.layers.{}.mlp.up_proj.weight"
_MATRICES = ((1, 1), (1, 9), (9, 1), (5, 12), (12, 5), (6, 6), (24, 16))
_SHAPES = {
    "model.embed_tokens.weight": (11, 4),
    **{_LAYER.format(layer): shape for layer, shape in enumerate(_MATRICES)},
    "model.layers.0.input_layernorm.weight": (7,),
    "model.layers.1.scale": (),
    "model.layers.1.mlp.gate.weight": (3, 4),
    "model.norm.weight": (1,),
    "lm_head.weight": (11, 4),
}


def check_delta_transform(
    transform: str | type,
    *,
    parameters: Mapping[str, Any] | None = None,
    n_experts: Sequence[int] = (1, 2, 3, 4),
    scale_equivariant: bool = True,
    tolerance: float = 1e-3,
) -> None:
    """Check that a delta transform keeps the promises the cache and the search rely on.

    Runs on a small model of random matrices (1 x 1, wide, tall, square), vectors, embedding, router
    and head. Checks number, shape and dtype of the results, the same bits on a second run, inputs
    left alone, finite results also when one expert equals the base, zero when all do, tensors whose
    `fallback` is a mean, that the order of the experts does not matter unless `is_ordered`, and
    that task vectors c times as long give results c times as long.

    Args:
        transform: Registered name, or the class.
        parameters: Constructor keywords; default: the class's defaults.
        n_experts: Numbers of experts to try.
        scale_equivariant: False for a method that looks at the size of the task vectors by design.
        tolerance: Largest error allowed, relative to the largest element.

    Raises:
        AssertionError: A promise is broken.
        UnknownNameError: No delta transform has that name.
    """
    cls: Any = delta_transforms.get(transform) if isinstance(transform, str) else transform
    _check_declaration(cls)
    for count in n_experts:
        suite = _Suite(cls, dict(parameters or {}), f"{cls.__name__} of {count} experts", tolerance)
        model = _model(count)
        results = suite.check_results(model)
        suite.check_equal_to_base(model)
        if count > 1:
            suite.check_results(_with_zero(model, (1,)))
        if not cls.is_ordered:
            suite.check_order(model, results)
        if scale_equivariant:
            suite.check_scale(model, results)


def _check_declaration(cls: Any) -> None:
    is_dataclass = bool(dataclasses.is_dataclass(cls))
    assert is_dataclass, f"{cls.__name__} is not a dataclass"
    assert cls.__dataclass_params__.frozen, f"{cls.__name__} is not frozen"
    assert cls.outputs in ("experts", "merged"), f"{cls.__name__}.outputs is wrong"
    is_version = isinstance(cls.version, int) and cls.version >= 1
    assert is_version, f"{cls.__name__}.version is not a whole number from 1"
    for name in ("is_ordered", "needs_survey"):
        assert isinstance(getattr(cls, name, None), bool), f"{cls.__name__}.{name} is not a bool"


def _model(n_experts: int) -> tuple[DeltaInputs, ...]:
    generator = torch.Generator().manual_seed(n_experts)
    return tuple(
        DeltaInputs(
            name,
            torch.randn(shape, generator=generator),
            # Experts of different lengths: equal ones would hide a wrong order or weight.
            tuple(
                0.05 * (1 + k / 4) * torch.randn(shape, generator=generator)
                for k in range(n_experts)
            ),
            len(_MATRICES),
        )
        for name, shape in _SHAPES.items()
    )


def _with_zero(model: Sequence[DeltaInputs], which: Sequence[int]) -> tuple[DeltaInputs, ...]:
    return tuple(
        replace(
            part,
            deltas=tuple(
                torch.zeros_like(delta) if k in which else delta
                for k, delta in enumerate(part.deltas)
            ),
        )
        for part in model
    )


def _survey(built: DeltaTransform, model: Sequence[DeltaInputs]) -> FloatArray | None:
    return built.survey(iter(model)) if built.needs_survey else None


def _is_close(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    largest = float(expected.abs().max())
    return bool((got - expected).abs().max() <= tolerance * largest + 1e-12)


@dataclass(frozen=True)
class _Suite:
    cls: Any
    parameters: Mapping[str, Any]
    what: str
    tolerance: float

    def run(self, model: Sequence[DeltaInputs]) -> list[tuple[Tensor, ...]]:
        built: DeltaTransform = self.cls(**self.parameters)
        survey = _survey(built, model)
        return [tuple(built.transform(part, survey)) for part in model]

    def check_results(self, model: Sequence[DeltaInputs]) -> list[tuple[Tensor, ...]]:
        before = [[part.base.clone(), *(d.clone() for d in part.deltas)] for part in model]
        first = [tuple(delta.clone() for delta in outputs) for outputs in self.run(model)]
        again = self.run(model)
        built: DeltaTransform = self.cls(**self.parameters)
        for part, kept, outputs, repeated in zip(model, before, first, again, strict=True):
            where = f"{self.what} on {part.name} {part.shape}"
            wanted = len(part.deltas) if self.cls.outputs == "experts" else 1
            wanted += len(self.cls.extra_outputs)
            assert len(outputs) == wanted, f"{where}: {len(outputs)} results, expected {wanted}"
            for delta in outputs:
                assert delta.shape == part.shape, f"{where}: the result is {tuple(delta.shape)}"
                assert delta.dtype == torch.float32, f"{where}: the result is {delta.dtype}"
                assert bool(torch.isfinite(delta).all()), f"{where}: the result is not finite"
            now = (part.base, *part.deltas)
            is_left = all(map(torch.equal, kept, now))
            assert is_left, f"{where}: an input tensor was written to"
            is_same = all(map(torch.equal, outputs, repeated))
            assert is_same, f"{where}: a second run gives other bits"
            how = built.fallback(part.name, part.shape)
            if how is not None and "mean" in how:
                means = mean_parts(part.deltas, self.cls.outputs)
                is_mean = all(
                    _is_close(delta, mean, 1e-6) for delta, mean in zip(outputs, means, strict=True)
                )
                assert is_mean, f"{where}: fallback says {how!r}, but the result is no mean"
        return first

    def check_equal_to_base(self, model: Sequence[DeltaInputs]) -> None:
        n_experts = len(model[0].deltas)
        for part, outputs in zip(
            model, self.check_results(_with_zero(model, range(n_experts))), strict=True
        ):
            is_zero = all(float(delta.abs().max()) <= 1e-12 for delta in outputs)
            assert is_zero, f"{self.what} on {part.name}: experts equal to the base change it"

    def check_order(
        self, model: Sequence[DeltaInputs], expected: Sequence[tuple[Tensor, ...]]
    ) -> None:
        turned = self.run([replace(part, deltas=part.deltas[::-1]) for part in model])
        for part, outputs, before in zip(model, turned, expected, strict=True):
            n_own = len(part.deltas) if self.cls.outputs == "experts" else 1
            back = (*outputs[:n_own][::-1], *outputs[n_own:])
            is_same = all(
                _is_close(a, b, self.tolerance) for a, b in zip(back, before, strict=True)
            )
            assert is_same, f"{self.what} on {part.name}: the order of the experts matters"

    def check_scale(
        self, model: Sequence[DeltaInputs], expected: Sequence[tuple[Tensor, ...]]
    ) -> None:
        for scale in (0.25, 16.0):
            longer = [replace(p, deltas=tuple(scale * d for d in p.deltas)) for p in model]
            for part, outputs, before in zip(model, self.run(longer), expected, strict=True):
                is_scaled = all(
                    _is_close(a, scale * b, self.tolerance)
                    for a, b in zip(outputs, before, strict=True)
                )
                assert is_scaled, (
                    f"{self.what} on {part.name}: {scale} f(d) differs from f({scale} d)"
                )
