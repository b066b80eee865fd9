"""Which seats a pool has to add and which to give up, so that it has the workers it should."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

from evomerge.runtime.assignments import Seat
from evomerge.runtime.placement_plan import WorkerShape

_Size = tuple[float, float]


def seat_changes(
    seats: Sequence[Seat],
    wanted: Sequence[WorkerShape],
    staying: Collection[str] | None = None,
) -> tuple[list[WorkerShape], list[Seat]]:
    """Return the shapes that are missing, and seats that are not wanted and do nothing.

    A seat serves a shape of its size: one that is bound to a node by being there, one that is not
    from anywhere. Workers that are ready are never given up: what holds a model may score with it.

    Args:
        seats: All; those that are leaving count for nothing.
        wanted: The shape of every worker that there should be.
        staying: Ids of the nodes that hold workers; a seat that is bound to another one can start
            none, and serves nothing unless it is ready. None: not known.
    """
    stranded: list[Seat] = []
    places: dict[_Size, dict[str, list[Seat]]] = defaultdict(lambda: defaultdict(list))
    for seat in sorted(seats, key=lambda seat: seat.is_ready):  # popped from the end: ready first
        if seat.is_leaving:
            continue
        if is_stranded(seat, staying) and not seat.is_ready:
            stranded.append(seat)
        else:
            size = (seat.shape.cpus, seat.shape.gpus)
            places[size][seat.shape.node or seat.node].append(seat)
    missing: list[WorkerShape] = []
    for shape in sorted(wanted, key=lambda shape: not shape.node):  # those bound to a node first
        by_node = places[shape.cpus, shape.gpus]
        found = by_node[shape.node] if shape.node else _readiest(by_node)
        if found:
            found.pop()
        else:
            missing.append(shape)
    left = (seat for nodes in places.values() for found in nodes.values() for seat in found)
    return missing, stranded + [seat for seat in left if not seat.is_ready]


def is_stranded(seat: Seat, staying: Collection[str] | None) -> bool:
    """Return whether a seat is bound to a node that has gone."""
    return staying is not None and bool(seat.shape.node) and seat.shape.node not in staying


def _readiest(by_node: dict[str, list[Seat]]) -> list[Seat]:
    filled = [found for found in by_node.values() if found]
    return max(filled, key=lambda found: found[-1].is_ready, default=[])
