"""The conformance suite of merge operators; public as `evomerge.testing.check_merge_operator`."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import torch
from torch import Tensor

from evomerge.core.genes import gene_fields, setting_names
from evomerge.merging.grams import gram_of
from evomerge.merging.operator import MergeOperator, TensorInputs, merge_operators

_SHAPES = ((), (1,), (7,), (1, 1), (1, 9), (17, 31), (2, 3, 3, 3))
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_merge_operator(
    operator: str | type,
    *,
    order_matters: bool = False,
    lone_expert: bool = True,
) -> None:
    """Check that a merge operator keeps the promises the search relies on.

    Runs on random tensors of odd shapes in three dtypes: checks shape and dtype of the result,
    same bits on a second run, inputs left alone, finite results, experts equal to the base give
    the base back, a lone expert with weight 1 comes back bit for bit, the order of experts does
    not matter, a seed decides the masks, and slices equal the whole when it says so.

    Args:
        operator: Registered name, or the class.
        order_matters: The method depends on the order of the experts by design. Methods
            without a parameter per source are not checked for order either.
        lone_expert: A single expert with weight, scale and density 1 must come back.

    Raises:
        AssertionError: A promise is broken.
        UnknownNameError: No merge method has that name.
    """
    cls: Any = merge_operators.get(operator) if isinstance(operator, str) else operator
    _check_declaration(cls)
    for shape in _SHAPES:
        for dtype in _DTYPES:
            _check_one(cls, shape, dtype, order_matters=order_matters, lone_expert=lone_expert)
    if "seed" in setting_names(cls):
        _check_seed(cls)


def _check_declaration(cls: Any) -> None:
    is_dataclass = bool(dataclasses.is_dataclass(cls))
    assert is_dataclass, f"{cls.__name__} is not a dataclass"
    assert cls.__dataclass_params__.frozen, f"{cls.__name__} is not frozen"
    for name in ("needs_base", "sliceable", "needs_gram", "needs_thresholds", "needs_ranks"):
        assert isinstance(getattr(cls, name, None), bool), f"{cls.__name__}.{name} is not a bool"
    assert cls.weights_over in ("experts", "sources"), f"{cls.__name__}.weights_over is wrong"
    assert cls.n_models is None or cls.n_models > 0, f"{cls.__name__}.n_models is wrong"
    for item in gene_fields(cls):
        assert item.gene.low < item.gene.high, f"{cls.__name__}.{item.name}: the range is empty"
        for value in (item.gene.low, item.gene.high):
            item.gene.check(value, f"{cls.__name__}.{item.name}: the search range: it")


def _build(cls: Any, n_sources: int, **changes: Any) -> MergeOperator:
    """Return the operator with defaults, or values inside the search range where there is none."""
    values: dict[str, Any] = {}
    for item in gene_fields(cls):
        low, high = item.gene.low, item.gene.high
        if item.per_source:
            steps = [0.3 + 0.4 * (k + 1) / (n_sources + 1) for k in range(n_sources)]
            values[item.name] = tuple(low + (high - low) * step for step in steps)
        elif item.default is None:
            values[item.name] = low + 0.5 * (high - low)
    values.update(changes)
    built: MergeOperator = cls(**values)
    return built


def _width(cls: Any, inputs: TensorInputs) -> int:
    return len(inputs.sources) if cls.weights_over == "sources" else len(inputs.experts)


def _inputs(
    cls: Any,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    scale: float = 0.1,
    n: int | None = None,
) -> TensorInputs:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(shape, generator=generator).to(dtype)
    n_experts = n or cls.n_models or 3
    experts = tuple(
        (base.float() + scale * torch.randn(shape, generator=generator)).to(dtype)
        for _ in range(n_experts)
    )
    keys = tuple(hashlib.blake2b(bytes([k])).hexdigest() for k in range(n_experts))
    return _complete(TensorInputs("tensor", base if cls.needs_base else None, experts, dtype, keys))


def _complete(inputs: TensorInputs) -> TensorInputs:
    """Add the Gram matrix, and thresholds of this tensor alone."""

    def threshold(expert: int, density: float, _exact: bool) -> float:
        magnitudes = inputs.deltas[expert].abs().reshape(-1).sort(descending=True).values
        return float(magnitudes[max(int(density * len(magnitudes)), 1) - 1])

    gram = gram_of(inputs.sources)
    return dataclasses.replace(
        inputs, gram=gram, global_threshold=threshold, pooled_gram=lambda _: gram
    )


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def _is_close(a: Tensor, b: Tensor) -> bool:
    tolerance = 4.0 * torch.finfo(a.dtype).eps
    return torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance)


def _check_one(
    cls: Any, shape: tuple[int, ...], dtype: torch.dtype, *, order_matters: bool, lone_expert: bool
) -> None:
    where = f"{cls.__name__} on {shape} {dtype}"
    inputs = _inputs(cls, shape, dtype)
    operator = _build(cls, _width(cls, inputs))
    before = [tensor.clone() for tensor in inputs.sources]
    merged = operator.merge(inputs).clone()
    assert merged.shape == shape, f"{where}: the result has shape {tuple(merged.shape)}"
    assert merged.dtype == dtype, f"{where}: the result is {merged.dtype}"
    assert bool(torch.isfinite(merged).all()), f"{where}: the result is not finite"
    assert all(map(_same, before, inputs.sources)), f"{where}: an input tensor was written to"
    again = operator.merge(_inputs(cls, shape, dtype))
    assert _same(merged, again), f"{where}: a second run gives other bits"
    wide = dataclasses.replace(inputs, out_dtype=torch.float32)
    assert operator.merge(wide).dtype == torch.float32, f"{where}: out_dtype is ignored"
    _check_equal_experts(cls, shape, dtype, where)
    if lone_expert:
        _check_lone_expert(cls, shape, dtype, where)
    if not order_matters:
        _check_order(cls, inputs, merged, where)
    if cls.sliceable:
        _check_slices(operator, inputs, merged, where)


def _check_equal_experts(cls: Any, shape: tuple[int, ...], dtype: torch.dtype, where: str) -> None:
    inputs = _inputs(cls, shape, dtype, scale=0.0)
    merged = _build(cls, _width(cls, inputs)).merge(inputs)
    expected = inputs.sources[0]
    assert _is_close(merged, expected), f"{where}: experts equal to the base do not give it back"


def _check_lone_expert(cls: Any, shape: tuple[int, ...], dtype: torch.dtype, where: str) -> None:
    """One weight of 1, the others 0 where the number of models is fixed; nothing dropped."""
    inputs = _inputs(cls, shape, dtype, n=None if cls.n_models else 1)
    if inputs.base is not None:
        # A base far from the expert: base + (expert - base) is then inexact in float32.
        inputs = _complete(dataclasses.replace(inputs, base=50.0 * inputs.base))
    width = _width(cls, inputs)
    changes: dict[str, Any] = {}
    names = {item.name: item for item in gene_fields(cls)}
    if "weights" not in names:
        return
    first = len(inputs.sources) - len(inputs.experts) if cls.weights_over == "sources" else 0
    changes["weights"] = tuple(float(k == first) for k in range(width))
    for name in ("lambda_", "density"):
        if name in names:
            item = names[name]
            changes[name] = (1.0,) * width if item.per_source else 1.0
    merged = _build(cls, width, **changes).merge(inputs)
    assert _same(merged, inputs.experts[0]), f"{where}: a lone expert does not come back exactly"


def _check_order(cls: Any, inputs: TensorInputs, merged: Tensor, where: str) -> None:
    per_source = [item.name for item in gene_fields(cls) if item.per_source]
    if not per_source or len(inputs.experts) < 2:
        return
    width = _width(cls, inputs)
    turned = _complete(
        dataclasses.replace(
            inputs, experts=inputs.experts[::-1], source_keys=inputs.source_keys[::-1]
        )
    )
    values = {}
    for name in per_source:
        row = getattr(_build(cls, width), name)
        n_fixed = width - len(inputs.experts)
        values[name] = row[:n_fixed] + row[n_fixed:][::-1]
    other = _build(cls, width, **values).merge(turned)
    assert _is_close(merged, other), f"{where}: the order of the experts matters"


def _check_slices(
    operator: MergeOperator, inputs: TensorInputs, merged: Tensor, where: str
) -> None:
    n_elements = merged.numel()
    for start, stop in ((0, n_elements), (n_elements // 3, n_elements), (0, -(-n_elements // 2))):
        part = dataclasses.replace(
            inputs,
            base=None if inputs.base is None else inputs.base.reshape(-1)[start:stop],
            experts=tuple(expert.reshape(-1)[start:stop] for expert in inputs.experts),
        )
        expected = merged.reshape(-1)[start:stop]
        assert _same(operator.merge(part), expected), f"{where}: a slice differs from the whole"


def _check_seed(cls: Any) -> None:
    inputs = _inputs(cls, (40, 50), torch.float32)
    width = _width(cls, inputs)
    a, b, c = (_build(cls, width, seed=seed).merge(inputs) for seed in (3, 3, 4))
    assert _same(a, b), f"{cls.__name__}: one seed gives two results"
    assert not _same(a, c), f"{cls.__name__}: two seeds give one result"
