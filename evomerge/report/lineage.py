"""Where the front came from: its ancestors, laid out by generation."""

from __future__ import annotations

from typing import Any

from evomerge.report.scored import Scored

MAX_NODES = 300


def lineage(scored: Scored) -> dict[str, Any]:
    """Return the graph of the front and its ancestors, nearest first until `MAX_NODES`.

    Returns:
        `nodes` with `id`, `depth` (generations below a candidate without parents), `lane`
        (place among those of one depth, in (0, 1)) and `front`; `edges` as (parent, child) pairs;
        `left_out`, how many known ancestors are not shown; `bred`, whether any has parents.
    """
    members = set(scored.front_ids)
    kept, left_out = _ancestors(scored, scored.front_ids)
    depth: dict[int, int] = {}
    for candidate_id in sorted(kept):  # parents have smaller ids than their children
        above = [depth[p] for p in scored.parents_of(candidate_id) if p in depth]
        depth[candidate_id] = 1 + max(above, default=-1)
    edges = [
        [parent, child]
        for child in sorted(kept)
        for parent in sorted(set(scored.parents_of(child)))
        if parent in depth and parent != child
    ]
    lanes = _lanes(depth, edges)
    return {
        "nodes": [
            {"id": i, "depth": depth[i], "lane": lanes[i], "front": i in members}
            for i in sorted(kept)
        ],
        "edges": edges,
        "left_out": left_out,
        "bred": bool(edges),
    }


def _ancestors(scored: Scored, start: list[int]) -> tuple[set[int], int]:
    """Return up to `MAX_NODES` candidates, breadth first from `start`, and how many more are."""
    order: dict[int, None] = dict.fromkeys(start)
    queue = list(order)
    for candidate_id in queue:  # grows while it is walked
        for parent in scored.parents_of(candidate_id):
            if parent not in order and parent in scored.results.asked:
                order[parent] = None
                queue.append(parent)
    kept = queue[:MAX_NODES]
    return set(kept), len(queue) - len(kept)


def _lanes(depth: dict[int, int], edges: list[list[int]]) -> dict[int, float]:
    """Return a place for every node within its depth: near the mean place of its parents.

    Source: Sugiyama et al. 1981 (layered drawing), one downward sweep of barycentres.
    """
    parents: dict[int, list[int]] = {}
    for parent, child in edges:
        parents.setdefault(child, []).append(parent)
    layers: dict[int, list[int]] = {}
    for node, level in depth.items():
        layers.setdefault(level, []).append(node)
    lanes: dict[int, float] = {}
    for level in sorted(layers):
        wish = {node: _mean([lanes[p] for p in parents.get(node, [])]) for node in layers[level]}
        ordered = [node for _, node in sorted((place, node) for node, place in wish.items())]
        lanes |= {node: (i + 0.5) / len(ordered) for i, node in enumerate(ordered)}
    return lanes


def _mean(places: list[float]) -> float:
    return sum(places) / len(places) if places else 0.5
