"""StackedSource: layers of one or more models in another order, as one tensor source.

Satisfies `evomerge.merging.source.TensorSource`. No bytes are copied: a tensor of the result is
read where it lies, under the name it has in its own model. With it a merge of stacks is the merge
of any sources.

Source: mergekit's `slices` (Goddard et al. 2024, arXiv:2403.13257).
Differs from mergekit: a head that one of two sources ties and the other stores apart is stored
apart; mergekit goes by the config alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evomerge.core.layer_plan import LayerPlan, LayerSlot
from evomerge.core.model_space import FLOAT_DTYPES, SourceHeader, TensorSpec
from evomerge.core.tensor_names import block_parts, order_key, place
from evomerge.errors import ModelSpaceError, SourceError, nearest
from evomerge.storage.model_folder import combined_digest
from evomerge.storage.source_like import SourceLike

_SCALED = ("attn.o", "mlp.down")


@dataclass(frozen=True)
class _Origin:
    """Where a tensor of the stack comes from."""

    source: str
    name: str
    scale: float


class StackedSource:
    """The model that a layer plan makes of some sources.

    Attributes:
        id: Name of the source in recipes.
        plan: Which layers, in which order.
    """

    def __init__(self, id: str, plan: LayerPlan, sources: Mapping[str, SourceLike]) -> None:
        """Work out which tensor comes from where; reads headers only.

        Args:
            id: Name of the source in recipes.
            plan: Its layers must be in range; see `LayerPlan.check`.
            sources: Source id -> model: those of the plan, and others that must be like them.

        Raises:
            ModelSpaceError: The sources are of different architectures or widths, have more than
                one stack of blocks, or normalise the outputs that a slot scales.
        """
        self.id = id
        self.plan = plan
        self._sources = dict(sources)
        headers = {name: source.header() for name, source in self._sources.items()}
        prefix = _common_prefix(headers)
        _check_shapes(headers)
        self._origins, self._tied = _ends(plan, headers)
        for layer, slot in enumerate(plan.layers):
            self._origins |= _block(headers[slot.source], slot, prefix, layer)
        self._header = self._make_header(headers)
        self._digest = combined_digest(self._header.tensors, self._header.digests)

    @property
    def digest(self) -> str:
        """Digest of names, shapes, dtypes and content, whatever the sources are called."""
        return self._digest

    def header(self) -> SourceHeader:
        """Return names, shapes, dtypes, digests and tying of the stack."""
        return self._header

    def read(self, name: str) -> Tensor:
        """Return one tensor in its stored dtype, a view unless it is scaled.

        Raises:
            SourceError: There is no such tensor.
        """
        origin = self._origin(name)
        return scaled(self._sources[origin.source].read(origin.name), origin.scale)

    def read_range(self, name: str, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor, (stop - start,).

        Raises:
            SourceError: There is no such tensor.
            ValueError: The range does not lie inside the tensor.
        """
        origin = self._origin(name)
        part = self._sources[origin.source].read_range(origin.name, start, stop)
        return scaled(part, origin.scale)

    def exact_delta(self, name: str) -> None:
        """Return None: a source's task vector is relative to its own base's layer."""
        del name

    def factors(self, name: str) -> None:
        """Return None: see `exact_delta`."""
        del name

    def _origin(self, name: str) -> _Origin:
        origin = self._origins.get(self._tied.get(name, name))
        if origin is None:
            raise SourceError(
                f"{self.id}: has no tensor {name!r}.{nearest(name, self._origins)} "
                "Check that all models are of one architecture."
            )
        return origin

    def _make_header(self, headers: Mapping[str, SourceHeader]) -> SourceHeader:
        tensors: dict[str, TensorSpec] = {}
        digests: dict[str, str] = {}
        for name in sorted(self._origins, key=order_key):
            origin = self._origins[name]
            header = headers[origin.source]
            stored = header.tied.get(origin.name, origin.name)
            tensors[name] = replace(header.tensors[stored], name=name)
            digest = header.digests[stored]
            digests[name] = digest if origin.scale == 1.0 else _scaled_digest(digest, origin.scale)
        architecture = headers[self.plan.stem].architecture
        return SourceHeader(self.id, architecture, tensors, digests, self._tied)


def _ends(
    plan: LayerPlan, headers: Mapping[str, SourceHeader]
) -> tuple[dict[str, _Origin], dict[str, str]]:
    """Return the tensors outside the blocks, and which of them share another's storage."""
    origins: dict[str, _Origin] = {}
    tied: dict[str, str] = {}
    for section, source in (("stem", plan.stem), ("tail", plan.tail)):
        header = headers[source]
        for name in {*header.tensors, *header.tied}:
            if place(name).section != section:
                continue
            if name in header.tied and name in headers[plan.stem].tied:
                tied[name] = header.tied[name]  # tied in both ends: one tensor again
            else:
                origins[name] = _Origin(source, name, 1.0)
    return origins, tied


def _block(header: SourceHeader, slot: LayerSlot, prefix: str, layer: int) -> dict[str, _Origin]:
    """Return the tensors of one slot under their new names."""
    found: dict[str, _Origin] = {}
    for name in header.tensors:
        parts = block_parts(name)
        if parts is None or parts[1] != slot.layer:
            continue
        is_output = place(name).kind in _SCALED
        is_float = header.tensors[name].dtype in FLOAT_DTYPES
        scale = slot.scale if is_output and is_float else 1.0
        found[f"{prefix}{layer}{parts[2]}"] = _Origin(slot.source, name, scale)
    if not found:
        raise ModelSpaceError(
            f"{slot.source!r} has no tensors in layer {slot.layer}; it cannot be stacked"
        )
    if slot.scale != 1.0:
        _check_scale(header, slot, found)
    return found


def _check_scale(header: SourceHeader, slot: LayerSlot, found: Mapping[str, _Origin]) -> None:
    """Refuse a scale that would not scale what the block adds."""
    # Gemma 2 and 3 and OLMo 2 normalise what attention and MLP return.
    normalised = [name for name in found if "post_feedforward_layernorm" in name]
    kinds = {place(name).kind for name in found}
    why = f"{normalised[0]} normalises it" if normalised else ""
    if "attn.o" not in kinds:
        why = "the matrix at the end of its attention was not found"
    elif kinds & {"mlp.up", "mlp.gate_up"} and "mlp.down" not in kinds:
        why = "the matrix at the end of its MLP was not found"
    if why:
        raise ModelSpaceError(
            f"layer {slot.layer} of {slot.source!r} ({header.architecture or 'unknown'}) cannot "
            f"have its output scaled: {why}. Leave the scale out."
        )


def _common_prefix(headers: Mapping[str, SourceHeader]) -> str:
    """Return what stands before the layer's index in all names."""
    architectures = {header.architecture for header in headers.values() if header.architecture}
    if len(architectures) > 1:
        raise ModelSpaceError(
            "layers of different architectures cannot be stacked: "
            + ", ".join(f"{name!r} is {h.architecture or 'unknown'}" for name, h in headers.items())
        )
    prefixes: dict[str, str] = {}
    for source, header in headers.items():
        for name in header.tensors:
            parts = block_parts(name)
            if parts is not None:
                prefixes.setdefault(parts[0], source)
    if not prefixes:
        raise ModelSpaceError(f"no layers were found in {', '.join(map(repr, headers))}")
    if len(prefixes) > 1:
        listed = ", ".join(f"{prefix}* in {source!r}" for prefix, source in prefixes.items())
        raise ModelSpaceError(
            f"models with several stacks of layers cannot be stacked anew; found {listed}"
        )
    return next(iter(prefixes))


def _check_shapes(headers: Mapping[str, SourceHeader]) -> None:
    """Refuse sources whose blocks have no shape in common in some tensor: other widths."""
    seen: dict[str, tuple[str, set[tuple[int, ...]]]] = {}
    for source, header in headers.items():
        shapes: dict[str, set[tuple[int, ...]]] = {}
        for name, spec in header.tensors.items():
            parts = block_parts(name)
            if parts is not None:
                shapes.setdefault(parts[2], set()).add(spec.shape)
        for inner, found in shapes.items():
            first, wanted = seen.setdefault(inner, (source, found))
            if not found & wanted:
                raise ModelSpaceError(
                    f"layers of {first!r} and {source!r} do not fit together: "
                    f"*{inner} is {min(wanted)} in {first!r}, {min(found)} in {source!r}. "
                    "Stack only models of one width."
                )


def scaled(tensor: Tensor, scale: float) -> Tensor:
    """Return scale * tensor, computed in float32 at least and rounded once to its dtype."""
    if scale == 1.0:
        return tensor
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return (tensor.to(wide) * scale).to(tensor.dtype)


def _scaled_digest(digest: str, scale: float) -> str:
    text = f"{digest}*{float(scale).hex()}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
