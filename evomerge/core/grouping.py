"""Groupings: which tensors share a row of merge parameters.

=============  ==========================================================
``global``     one row for the whole model
``block:N``    the layers in N runs of equal length, plus ``embed`` and ``head``
``layer``      one row per layer, plus ``embed`` and ``head``
``kind``       one row per kind (attention query, mlp up, norm, …) over all layers
``module``     one row per layer × kind
``chunk:N``    N equal stretches of all merged elements in their frozen order, across tensors; a
               recipe says "segments" and where they end
=============  ==========================================================
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from evomerge.core.tensor_names import place
from evomerge.errors import ConfigError, nearest

GROUPINGS = ("global", "block:N", "layer", "kind", "module", "chunk:N")


def chunk_breaks(grouping: str, n_elements: int) -> tuple[int, ...]:
    """Return the (N + 1,) element offsets of ``chunk:N``, from 0 to n_elements; else ().

    Raises:
        ConfigError: There are fewer elements than chunks.
    """
    found = re.fullmatch(r"chunk:([1-9]\d*)", grouping)
    if not found:
        return ()
    n_chunks = int(found.group(1))
    if n_chunks > n_elements:
        raise ConfigError(f"{grouping!r} makes more chunks than there are elements, {n_elements}")
    return tuple(index * n_elements // n_chunks for index in range(n_chunks + 1))


def assign_groups(grouping: str, names: Sequence[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the group labels (G,) and each tensor's group index (T,).

    Args:
        grouping: One of the table above.
        names: Names of the merged tensors in their frozen order.

    Raises:
        ConfigError: The grouping is unknown, or one that cuts tensors.
    """
    found = re.fullmatch(r"block:([1-9]\d*)", grouping)
    if not found and (grouping not in GROUPINGS or grouping.endswith(":N")):
        raise ConfigError(
            f"{grouping!r} is not a grouping.{nearest(grouping, GROUPINGS)} "
            f"Known: {', '.join(GROUPINGS)}."
        )
    places = [place(name) for name in names]
    n_layers = 1 + max((p.layer for p in places if p.layer is not None), default=-1)

    def label(index: int) -> str:
        where = places[index]
        if grouping == "global":
            return "all"
        if grouping == "kind":
            return where.kind
        if grouping == "module":
            return where.label
        if where.layer is None:
            return "head" if where.section == "tail" else "embed"
        if found:
            n_blocks = min(int(found.group(1)), n_layers)
            return f"block.{where.layer * n_blocks // n_layers}"
        return f"layer.{where.layer}"

    labels: dict[str, int] = {}
    indices = tuple(labels.setdefault(label(i), len(labels)) for i in range(len(names)))
    return tuple(labels), indices
