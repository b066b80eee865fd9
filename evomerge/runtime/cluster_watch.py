"""What a running cluster looks like, asked again and again in a thread of its own.

Asking Ray's control store blocks while its host is down, so the pool that evaluates never does: it
looks at the latest `Sight`. Nodes that join are measured and planned for, nodes that are about to
go get no new work.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from evomerge.errors import ExecutorError, first_line
from evomerge.runtime.placement_plan import NodeFacts, PlacementError, Plan, WorkerShape

WATCH_SECONDS = 2.0
STOP_SECONDS = 5.0  # for a thread that hangs in a call to a dead control store
CLOSE_SECONDS = 15.0  # to leave a cluster without control store takes up to ten
# Ray ends a process, without an exception, when its control store has been away for so long.
_RAY_GIVES_UP = "RAY_gcs_rpc_server_reconnect_timeout_s"

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
            ExecutorError: What a node says of itself makes no sense.
        """
        self._cluster = cluster
        self._planner = planner
        self._note = note
        self._facts: dict[str, NodeFacts] = {}  # measured when a node was first seen, still empty
        self._requesting = threading.Lock()
        self._has_requested = False
        self._wanted: tuple[tuple[float, float], ...] = ()  # what the autoscaler was told last
        self._planned: tuple[WorkerShape, ...] = ()  # the last plan that found a place
        self._trouble = ""
        self._silent_since: float | None = None  # when it was asked what it has not answered yet
        gives_up = float(os.environ.get(_RAY_GIVES_UP, "60"))
        self._most_silent = max(gives_up - CLOSE_SECONDS, gives_up / 2)
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

    def require_answers(self) -> None:
        """Raise ExecutorError while there is time when the control store has been silent for long.

        Workers go on without it for a while; then Ray ends this process without a word.
        """
        if self._is_silent():
            raise ExecutorError(
                "the control store of the Ray cluster has not answered for "
                f"{self._most_silent:.0f} s: its head is down or cut off. Nothing that was told is "
                "lost; resume the run when the cluster is back"
            )

    def _is_silent(self) -> bool:
        since = self._silent_since
        return since is not None and time.monotonic() - since > self._most_silent

    def stop(self) -> None:
        """End the thread, and take back what the autoscaler was told."""
        self._stop.set()
        if self._is_silent():
            return
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
        if self._silent_since is None:
            self._silent_since = time.monotonic()
        draining = self._cluster.draining()
        live = frozenset(self._cluster.live())
        self._silent_since = None
        new = sorted(live - draining - set(self._facts))
        before = self._latest
        if before and not new and (before.live, before.draining) == (live, draining):
            return before
        for node in self._cluster.probe(new) if new else ():
            if node.trouble and before is None:
                raise ExecutorError(node.trouble)
            if node.trouble:  # a search that runs does without the node
                self._note(f"{node.trouble}; until it is mended and restarted it gets no worker")
            self._facts[node.id] = node
        known = [self._facts[node] for node in sorted(live - draining) if node in self._facts]
        staying = [node for node in known if not node.trouble]
        try:
            plan = self._planner(staying or [NodeFacts("the cluster", 0.0, 0)])
        except PlacementError:
            if before is None:
                raise
            # A cluster that may shrink to nothing has to hear that its nodes are wanted back.
            self._request(
                self._planned,
                f"no node is left that can hold a worker; the cluster's autoscaler was asked for "
                f"{len(self._planned)} workers",
            )
            return Sight((), live, draining)
        self._planned = tuple(plan.shapes())
        if plan.waiting:
            self._request(
                self._planned,
                f"{plan.waiting} of {plan.workers} workers have no room on the cluster; its "
                "autoscaler was told",
            )
        return Sight(self._planned, live, draining)

    def _request(self, shapes: Sequence[WorkerShape], note: str) -> None:
        """Tell the autoscaler what is wanted, unless that is what it was told last."""
        wanted = tuple(sorted((shape.cpus, shape.gpus) for shape in shapes))
        with self._requesting:
            if wanted == self._wanted or self._stop.is_set():  # nobody would take it back
                return
            self._has_requested = True
            self._cluster.request(shapes)
            self._wanted = wanted
        self._note(note)

    def _withdraw(self) -> None:
        try:
            with self._requesting:
                if self._has_requested:
                    self._has_requested = False
                    self._cluster.request(())
        except Exception as error:  # Ray's, of many kinds; the search itself is over
            self._note(f"the autoscaler could not be told the end: {first_line(error)}")
