"""ModelSpace: the tensors of K models lined up by name, and what to do with each.

Built from headers alone (names, shapes, digests); no weights pass through here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Literal

import numpy as np

from evomerge.core.ancestry import is_made
from evomerge.core.arrays import IntArray
from evomerge.core.tensor_names import order_key, place
from evomerge.errors import ModelSpaceError

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")

Action = Literal["merge", "copy"]


@dataclass(frozen=True)
class TensorSpec:
    """Name, safetensors dtype ("F32", "BF16", …) and shape of one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_elements(self) -> int:
        """Number of elements (1 for a scalar)."""
        return prod(self.shape)


@dataclass(frozen=True)
class SourceHeader:
    """What alignment needs to know of one model.

    Attributes:
        id: Name of the source in recipes.
        architecture: `architectures[0]` of config.json, "" when unknown.
        tensors: Tensor name -> spec, as stored in the files.
        digests: Tensor name -> content digest.
        tied: Name of a tensor that is not stored because it shares another's storage ->
            that other's name (`lm_head.weight` -> `model.embed_tokens.weight`).
    """

    id: str
    architecture: str
    tensors: Mapping[str, TensorSpec]
    digests: Mapping[str, str]
    tied: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SpaceTensor:
    """One tensor of the merged model.

    Attributes:
        spec: Name, output dtype and shape.
        action: "merge", or "copy" from the donor (identical everywhere, integer, or left out).
        reason: Why it is copied, for the run's manifest.
        offset: First element in the flattened order of merged tensors; -1 when copied.
    """

    spec: TensorSpec
    action: Action
    reason: str
    offset: int


@dataclass(frozen=True)
class ModelSpace:
    """K aligned sources.

    Attributes:
        sources: (K,) ids, the base first when `has_base`.
        has_base: Whether sources[0] is a base from which the others were fine-tuned.
        tensors: Tensors of the merged model in the frozen flattened order.
        left_out: Tensors that only some sources have -> which ones; not in the merge.
        untied: The output stores its head apart although some sources tie it.
    """

    sources: tuple[str, ...]
    has_base: bool
    tensors: tuple[SpaceTensor, ...]
    left_out: Mapping[str, str]
    untied: bool = False

    @cached_property  # asked several times per candidate
    def merged(self) -> tuple[SpaceTensor, ...]:
        """The tensors that are really merged, in flattened order."""
        return tuple(tensor for tensor in self.tensors if tensor.action == "merge")

    @cached_property
    def merged_specs(self) -> Mapping[str, TensorSpec]:
        """Name -> shape and dtype of the tensors that are really merged."""
        return {tensor.spec.name: tensor.spec for tensor in self.merged}

    @cached_property
    def tensor_breaks(self) -> IntArray:
        """(T + 1,) where merged tensors begin in the flattened order, rising, and where all end."""
        starts = {tensor.offset for tensor in self.merged if tensor.spec.n_elements}
        return np.array([*sorted(starts), self.n_elements], dtype=np.int64)

    @cached_property
    def n_elements(self) -> int:
        """Number of merged elements."""
        return sum(tensor.spec.n_elements for tensor in self.merged)

    @property
    def float_dtype(self) -> str:
        """The float dtype that most elements of the merged model have ("BF16")."""
        counts = dict.fromkeys(FLOAT_DTYPES, 0)
        for tensor in self.tensors:
            if tensor.spec.dtype in counts:
                counts[tensor.spec.dtype] += tensor.spec.n_elements
        return max(counts, key=lambda dtype: counts[dtype])


def align(headers: Sequence[SourceHeader], *, has_base: bool) -> ModelSpace:
    """Line up the tensors of all sources; the first header is the donor of names and dtypes.

    Tensors are merged when every source has them with one shape and a float dtype. They
    are copied from the donor when identical everywhere, when integer, or when a head
    differs between sources (encoders with one head per task); the last are listed in
    `left_out`.

    Raises:
        ModelSpaceError: The architectures differ, naming the first three differences, or
            nothing is left to merge.
    """
    if len(headers) < 2:
        raise ModelSpaceError("a merge needs at least two models; add one under `models:`")
    ids = [header.id for header in headers]
    if len(set(ids)) != len(ids):
        raise ModelSpaceError(f"source names repeat: {ids}. Give each model its own `name:`.")
    made = next(filter(is_made, ids), None)
    if made is not None:
        raise ModelSpaceError(
            f"{made!r} cannot name a model: in recipes it stands for what is computed. Give the "
            "model another `name:`."
        )
    views, untied = _untie(headers)
    donor = headers[0]
    left_out: dict[str, str] = {}
    problems: list[str] = []
    entries: list[tuple[TensorSpec, Action, str]] = []
    for name in sorted({name for view in views for name in view}, key=order_key):
        owners = [h.id for h, view in zip(headers, views, strict=True) if name in view]
        shapes = {view[name].shape for view in views if name in view}
        is_head = place(name).kind == "head"
        if len(owners) < len(headers) or (is_head and len(shapes) > 1):
            missing = [h.id for h, v in zip(headers, views, strict=True) if name not in v]
            if not is_head:
                problems.append(f"{name} is missing in {_quoted(missing)}")
                continue
            left_out[name] = (
                f"only in {_quoted(owners)}" if missing else f"shapes differ: {sorted(shapes)}"
            )
            if name in views[0]:
                entries.append((views[0][name], "copy", f"left out: {left_out[name]}"))
        elif len(shapes) > 1:
            other = next(
                i for i, view in enumerate(views) if view[name].shape != views[0][name].shape
            )
            problems.append(
                f"{name} is {views[0][name].shape} in {donor.id!r}, "
                f"{views[other][name].shape} in {headers[other].id!r}"
            )
        else:
            entries.append(_entry(name, headers, views))
    if problems:
        raise ModelSpaceError(_describe(headers, problems))
    tensors: list[SpaceTensor] = []
    offset = 0
    for spec, action, reason in entries:
        tensors.append(SpaceTensor(spec, action, reason, offset if action == "merge" else -1))
        offset += spec.n_elements if action == "merge" else 0
    if not offset:
        raise ModelSpaceError(
            f"nothing to merge: {', '.join(ids)} hold the same weights in every shared tensor"
        )
    return ModelSpace(tuple(ids), has_base, tuple(tensors), left_out, untied)


def lone(header: SourceHeader) -> ModelSpace:
    """Return the space of one model: its float tensors are merged, the others copied.

    For methods that need no second model, such as a scaled stack of layers.
    """
    tensors: list[SpaceTensor] = []
    offset = 0
    for name in sorted(header.tensors, key=order_key):
        if name in header.tied:
            continue  # some checkpoints store the shared tensor twice
        spec = header.tensors[name]
        if spec.dtype in FLOAT_DTYPES:
            tensors.append(SpaceTensor(spec, "merge", "", offset))
            offset += spec.n_elements
        else:
            tensors.append(SpaceTensor(spec, "copy", f"not a float tensor ({spec.dtype})", -1))
    return ModelSpace((header.id,), False, tuple(tensors), {})


def _untie(
    headers: Sequence[SourceHeader],
) -> tuple[list[dict[str, TensorSpec]], bool]:
    """Return each source's tensors, with tied ones spelled out where any source unties them.

    When all sources tie a pair it stays one tensor. When one source stores its own head,
    the output does too, and the sources that tie it contribute the tensor they share.
    """
    views = [dict(header.tensors) for header in headers]
    aliases = {name for header in headers for name in header.tied}
    untied = False
    for alias in aliases:
        if all(alias in header.tied for header in headers):
            for view in views:
                view.pop(alias, None)  # some checkpoints store the shared tensor twice
            continue
        untied = True
        for view, header in zip(views, headers, strict=True):
            if alias in header.tied:
                kept = header.tensors[header.tied[alias]]
                view[alias] = TensorSpec(alias, kept.dtype, kept.shape)
    return views, untied


def _entry(
    name: str, headers: Sequence[SourceHeader], views: Sequence[Mapping[str, TensorSpec]]
) -> tuple[TensorSpec, Action, str]:
    spec = views[0][name]
    digests = {header.digests[header.tied.get(name, name)] for header in headers}
    dtypes = {view[name].dtype for view in views}
    if len(digests) == 1 and len(dtypes) == 1:
        return spec, "copy", "identical in every source"
    if any(dtype not in FLOAT_DTYPES for dtype in dtypes):
        return spec, "copy", f"not a float tensor ({', '.join(sorted(dtypes))})"
    return spec, "merge", ""


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _describe(headers: Sequence[SourceHeader], problems: Sequence[str]) -> str:
    kinds = {header.architecture for header in headers if header.architecture}
    architectures = f" (architectures: {', '.join(sorted(kinds))})" if len(kinds) > 1 else ""
    shown = "; ".join(problems[:3])
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    return (
        f"the models do not have the same architecture{architectures}: {shown}{more}. "
        "Merge only fine-tunes of one base."
    )
