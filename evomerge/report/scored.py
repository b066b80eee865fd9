"""What the parts of a report share: the fully scored candidates, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from evomerge.config.finalists import parent_candidates
from evomerge.config.results import RunResults
from evomerge.core.arrays import FloatArray, IntArray
from evomerge.core.pareto import ParetoFront
from evomerge.search.events import Event


@dataclass(frozen=True, eq=False)
class Scored:
    """The candidates of a run that have all objectives, in the order they were told.

    Attributes:
        results: The run.
        told: Their events.
        front: The run's front.
    """

    results: RunResults
    told: tuple[Event, ...]
    front: ParetoFront

    @classmethod
    def of(cls, results: RunResults) -> Scored:
        """Take the events that have objectives; failures and partial scores have none."""
        told = tuple(event for event in results.told if event.get("objectives") is not None)
        return cls(results, told, results.front())

    def __len__(self) -> int:
        """How many candidates have all objectives."""
        return len(self.told)

    @cached_property
    def ids(self) -> IntArray:
        """(P,) candidate ids."""
        return np.array([int(event["id"]) for event in self.told], dtype=np.int64)

    @cached_property
    def objectives(self) -> FloatArray:
        """(P, M) objective values."""
        shape = (len(self.told), len(self.results.objectives))
        values = [event["objectives"] for event in self.told]
        return np.array(values, dtype=np.float64).reshape(shape)

    @cached_property
    def front_ids(self) -> list[int]:
        """The front, best first objective first."""
        order = np.lexsort((self.front.candidate_ids, -self.front.objectives[:, 0]))
        return [int(i) for i in self.front.candidate_ids[order]]

    def origin(self, candidate_id: int) -> str:
        """Return how a candidate came about."""
        return str(self.results.asked[candidate_id]["origin"])

    def parents_of(self, candidate_id: int) -> list[int]:
        """Return the ids a candidate was bred from."""
        return [int(parent) for parent in self.results.asked[candidate_id]["parents"]]

    @cached_property
    def models(self) -> dict[str, int]:
        """Source -> the candidate that is this model unmerged, where it was scored."""
        return parent_candidates(self.results)
