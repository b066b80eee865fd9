"""LoRA-LEGO: the units of all adapters, clustered into those of one.

Shape letters: U units of all experts together, k clusters, m x n matrices (outputs x inputs).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.merging.low_rank import LowRank
from evomerge.merging.transform import DeltaInputs, TransformDefaults, delta_transform, mean_parts
from evomerge.merging.transforms.factored import factored
from evomerge.merging.transforms.ranges import check_settings
from evomerge.seeding import derive

_MAX_ROUNDS = 100


@delta_transform("lora_lego")
@dataclass(frozen=True, kw_only=True)
class LoraLego(TransformDefaults):
    """d = sqrt(r / k) sum_c b_c a_c, (a_c, b_c) the mean of a cluster of units at their mean norm.

    A unit is a row of A with its column of B; k-means groups the units of all experts by Euclidean
    distance. The result does not depend on the order of units or experts, bit for bit: they are
    sorted first.

    Attributes:
        rank: k, units of the merged adapter; all units when there are fewer. Also the number of
            units a task vector that is no adapter is cut into, by SVD.
        seed: Of the first centroids.

    Source: Zhao et al. 2024 (LoRA-LEGO), arXiv:2409.16167. No code is public: the factor
    sqrt(r / k), r the mean rank of the experts, is taken from the text. An adapter's scale counts
    as part of B.
    """

    rank: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, rank=(1, 2**16))

    def transform(self, tensors: DeltaInputs, survey: FloatArray | None) -> tuple[Tensor, ...]:
        """Return the merged task vector."""
        del survey
        if self.fallback(tensors.name, tensors.shape) is not None:
            return mean_parts(tensors.deltas, self.outputs)
        parts = [part for part in factored(tensors, self.rank) if part.rank]
        if not parts:
            return (torch.zeros_like(tensors.base),)
        generator = torch.Generator().manual_seed(derive(self.seed, "lora_lego", tensors.name))
        merged = lego(parts, self.rank, generator)
        return (merged.product().reshape(tensors.shape),)


def lego(parts: list[LowRank], rank: int, generator: torch.Generator) -> LowRank:
    """Return at most `rank` units made of those of all parts, with the output factor in B."""
    n = parts[0].a.shape[1]
    units = torch.cat([torch.cat([part.a, part.b.T], dim=1) for part in parts])
    units = units[_order(units)].double()
    labels = cluster(units, min(rank, len(units)), generator)
    rows = []
    for label in sorted(set(labels.tolist())):
        members = units[labels == label]
        centroid = members.mean(0)
        size = float(centroid.norm())
        wanted = float(members.norm(dim=1).mean())
        rows.append(centroid * (wanted / size if size > 0.0 else 0.0))
    merged = torch.stack(rows)
    mean_rank = sum(part.rank for part in parts) / len(parts)
    scale = math.sqrt(mean_rank / len(rows))
    return LowRank(merged[:, :n].float(), (scale * merged[:, n:].T).float())


def _order(units: Tensor) -> list[int]:
    """Return an order of the units that depends on their elements alone.

    The first elements nearly always decide; the bytes of all are for units that share them.
    """
    heads = units[:, :8].tolist()
    return sorted(range(len(units)), key=lambda i: (heads[i], units[i].numpy().tobytes()))


def cluster(points: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Return (U,) labels of Lloyd's k-means after k-means++ seeding.

    Args:
        points: (U, d) float64, in an order that means nothing.
        k: Clusters, at most U; fewer come out where points coincide.
        generator: Draws the first centroids.
    """
    centroids = _first_centroids(points, k, generator)
    labels = torch.full((len(points),), -1)
    for _ in range(_MAX_ROUNDS):
        fresh = _square_distances(points, centroids).argmin(dim=1)
        if torch.equal(fresh, labels):
            break
        labels = fresh
        for label in range(k):
            members = points[labels == label]
            if len(members):  # an empty cluster keeps its place, and may win points back
                centroids[label] = members.mean(0)
    return labels


def _first_centroids(points: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Return (k, d) points, each drawn by its squared distance to those before it."""
    first = int(torch.randint(len(points), (1,), generator=generator))
    chosen = [first]
    nearest = _square_distances(points, points[first : first + 1])[:, 0]
    while len(chosen) < k:
        nearest[chosen] = 0.0
        cumulative = nearest.cumsum(0)
        drawn = float(torch.rand(1, generator=generator, dtype=torch.float64)) * cumulative[-1]
        found = int(torch.searchsorted(cumulative, drawn, right=True))
        if found >= len(points) or nearest[found] <= 0.0:  # all that are left coincide
            found = next(i for i in range(len(points)) if i not in chosen)
        chosen.append(found)
        distances = _square_distances(points, points[found : found + 1])[:, 0]
        nearest = torch.minimum(nearest, distances)
    return points[chosen].clone()


def _square_distances(points: Tensor, centroids: Tensor) -> Tensor:
    """Return (U, k) squared distances; of differences, so that equal points are at 0."""
    columns = [(points - centroid).square().sum(1) for centroid in centroids]
    return torch.stack(columns, dim=1)
