"""LayerPlan: which block of which source stands where in a model of another depth."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.errors import ConfigError, nearest

FORMAT = 1
# Deeper models than any that is published; a plan beyond it is a mistake in a file.
MAX_LAYERS = 4096


@dataclass(frozen=True)
class LayerSlot:
    """One block of the result.

    Attributes:
        source: Id of the source it is taken from.
        layer: Its index there.
        scale: Factor of what the block adds to the residual stream, at the end of its attention
            and of its MLP (`o_proj` and `down_proj`, biases included); 0 makes it the identity.
    """

    source: str
    layer: int
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check the fields."""
        if not isinstance(self.source, str) or not self.source:
            raise ConfigError(f"layer plan: {self.source!r} is not the name of a source")
        if type(self.layer) is not int or self.layer < 0:
            raise ConfigError(f"layer plan: {self.layer!r} is not the index of a layer")
        is_number = isinstance(self.scale, int | float) and not isinstance(self.scale, bool)
        if not is_number or not math.isfinite(self.scale):
            raise ConfigError(f"layer plan: scale {self.scale!r} is not a finite number")


@dataclass(frozen=True)
class LayerPlan:
    """The blocks of a model, in order, and where the rest of it comes from.

    Attributes:
        layers: One slot per block of the result; a source's layer may occur often, or never.
        stem: Id of the source that gives what comes before the blocks: the embeddings.
        tail: Id of the source that gives what comes after them: final norm and head.
    """

    layers: tuple[LayerSlot, ...]
    stem: str
    tail: str

    def __post_init__(self) -> None:
        """Check what can be checked without the sources."""
        if not self.layers:
            raise ConfigError("layer plan: no layers; a model needs at least one")
        if len(self.layers) > MAX_LAYERS:
            raise ConfigError(f"layer plan: {len(self.layers)} layers, at most {MAX_LAYERS} go")
        for part, source in (("stem", self.stem), ("tail", self.tail)):
            if not isinstance(source, str) or not source:
                raise ConfigError(f"layer plan: {part} {source!r} is not the name of a source")

    @classmethod
    def whole(cls, source: str, n_layers: int) -> LayerPlan:
        """Return the plan that is the source itself."""
        return cls(tuple(LayerSlot(source, i) for i in range(n_layers)), source, source)

    @property
    def sources(self) -> tuple[str, ...]:
        """Ids of the sources it takes anything from, that of the stem first."""
        names = (self.stem, *(slot.source for slot in self.layers), self.tail)
        return tuple(dict.fromkeys(names))

    def check(self, n_layers: Mapping[str, int], *, max_repeats: int | None = None) -> None:
        """Raise ConfigError unless the sources have what the plan takes.

        Args:
            n_layers: Source id -> number of its layers.
            max_repeats: How often one layer of a source may occur; None for any number.
        """
        for source in self.sources:
            if source not in n_layers:
                raise ConfigError(
                    f"layer plan: {source!r} is not a source.{nearest(source, n_layers)} "
                    f"Known: {', '.join(n_layers)}."
                )
        for index, slot in enumerate(self.layers):
            if slot.layer >= n_layers[slot.source]:
                raise ConfigError(
                    f"layer plan: layer {index} is layer {slot.layer} of {slot.source!r}, which "
                    f"has {n_layers[slot.source]} layers, the first of them layer 0"
                )
        counts = Counter((slot.source, slot.layer) for slot in self.layers)
        (source, layer), most = counts.most_common(1)[0]
        if max_repeats is not None and most > max_repeats:
            raise ConfigError(
                f"layer plan: layer {layer} of {source!r} occurs {most} times, at most "
                f"{max_repeats} are allowed"
            )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping; a layer is [source, index], with the scale if it is not 1.

        Floats keep all their bits through `repr`.
        """
        layers = [
            [slot.source, slot.layer, *(() if slot.scale == 1.0 else (slot.scale,))]
            for slot in self.layers
        ]
        return {"format": FORMAT, "stem": self.stem, "tail": self.tail, "layers": layers}

    @classmethod
    def from_json(cls, body: Any, *, where: str = "layer plan") -> LayerPlan:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: A key is missing, unknown or has the wrong type; names `where`.
        """
        known = {"format", "stem", "tail", "layers"}
        if not isinstance(body, Mapping) or set(body) != known:
            raise ConfigError(f"{where}: expected a mapping with {', '.join(sorted(known))}")
        if body["format"] != FORMAT:
            raise ConfigError(f"{where}: format is {body['format']!r}, expected {FORMAT}")
        rows = body["layers"]
        if not isinstance(rows, list) or not all(
            isinstance(row, list) and len(row) in (2, 3) for row in rows
        ):
            raise ConfigError(f"{where}: layers must be a list of [source, layer] or with a scale")
        try:
            return cls(tuple(LayerSlot(*row) for row in rows), body["stem"], body["tail"])
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
