"""What a running cluster looks like, asked again and again in a thread of its own.

Asking Ray's control store blocks while its host is down, so the pool that evaluates never does: it
looks at the latest `Sight`. Nodes that join are measured and planned for, nodes that are about to
go get no new work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from evomerge.errors import first_line
from evomerge.runtime.placement_plan import NodeFacts, PlacementError, Plan, WorkerShape

WATCH_SECONDS = 2.0
STOP_SECONDS = 5.0  # for a thread that hangs in a call to a dead control store

Planner = Callable[[Sequence[NodeFacts]], Plan]


class AskedCluster(Protocol):
    """The questions that are asked; every one may block, and raise anything of Ray's."""

    def live(self) -> Collection[str]:
        """Return the ids of nodes that live and may hold workers."""
        ...

    def draining(self) -> frozenset[str]:
        """Return the ids of nodes that are about to go."""
        ...

    def probe(self, ids: Sequence[str]) -> list[NodeFacts]:
        """Return what nodes have; those that do not answer are left out."""
        ...

    def request(self, shapes: Sequence[WorkerShape]) -> None:
        """Tell the autoscaler what all workers together want; none: nothing any more."""
        ...


@dataclass(frozen=True, eq=False)
class Sight:
    """A cluster at one moment.

    Attributes:
        shapes: Of all workers that there should be.
        live: Ids of the nodes that may hold workers.
        draining: Ids of nodes that are about to go.
    """

    shapes: tuple[WorkerShape, ...]
    live: frozenset[str]
    draining: frozenset[str]

    @property
    def staying(self) -> frozenset[str]:
        """Ids of the nodes that workers can start on."""
        return self.live - self.draining


class ClusterWatch:
    """Keeps `latest` up to date until `stop`."""

    def __init__(
        self, cluster: AskedCluster, planner: Planner, *, note: Callable[[str], None]
    ) -> None:
        """Look once, and start the thread.

        Args:
            cluster: Whom to ask.
            planner: Nodes -> workers.
            note: Writes a line to events.log; called from the thread, too.

        Raises:
            PlacementError: No node can hold a worker.
        """
        self._cluster = cluster
        self._planner = planner
        self._note = note
        self._facts: dict[str, NodeFacts] = {}  # measured when a node was first seen, still empty
        self._requesting = threading.Lock()
        self._has_requested = False
        self._trouble = ""
        self._stop = threading.Event()
        self._latest: Sight | None = None
        self._latest = self._look()
        self._thread = threading.Thread(target=self._run, name="cluster-watch", daemon=True)
        self._thread.start()

    @property
    def latest(self) -> Sight:
        """What was seen last."""
        assert self._latest is not None
        return self._latest

    def stop(self) -> None:
        """End the thread, and take back what the autoscaler was told."""
        self._stop.set()
        self._thread.join(STOP_SECONDS)
        if self._has_requested:  # also where the thread still waits for a node's answer
            last = threading.Thread(target=self._withdraw, name="cluster-withdraw", daemon=True)
            last.start()
            last.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._stop.wait(WATCH_SECONDS):
            try:
                self._latest = self._look()
                self._trouble = ""
            except Exception as error:  # Ray's, of many kinds; the next look may succeed
                trouble = f"the cluster could not be asked for its nodes: {first_line(error)}"
                if trouble != self._trouble:
                    self._note(trouble)
                self._trouble = trouble

    def _look(self) -> Sight:
        draining = self._cluster.draining()
        live = frozenset(self._cluster.live())
        new = sorted(live - draining - set(self._facts))
        before = self._latest
        if before and not new and (before.live, before.draining) == (live, draining):
            return before
        if new:
            self._facts |= {node.id: node for node in self._cluster.probe(new)}
        staying = [self._facts[node] for node in sorted(live - draining) if node in self._facts]
        try:
            plan = self._planner(staying or [NodeFacts("the cluster", 0.0, 0)])
        except PlacementError:
            if before is None:
                raise
            return Sight((), live, draining)  # no node is left for now; others may join
        shapes = tuple(plan.shapes())
        if plan.waiting and (before is None or shapes != before.shapes):
            self._request(shapes)
            self._note(
                f"{plan.waiting} of {plan.workers} workers have no room on the cluster; its "
                "autoscaler was told"
            )
        return Sight(shapes, live, draining)

    def _request(self, shapes: Sequence[WorkerShape]) -> None:
        with self._requesting:
            if not self._stop.is_set():  # else nobody would take it back
                self._has_requested = True
                self._cluster.request(shapes)

    def _withdraw(self) -> None:
        try:
            with self._requesting:
                if self._has_requested:
                    self._has_requested = False
                    self._cluster.request(())
        except Exception as error:  # Ray's, of many kinds; the search itself is over
            self._note(f"the autoscaler could not be told the end: {first_line(error)}")
