"""RayPool: candidates on Ray actors, one at a time each.

Ray starts processes, reserves GPUs and says when a process is gone; everything that decides
which candidate runs where, and how often, is in this process: Ray neither restarts actors nor
retries calls. The loop makes no call to Ray's control store, which blocks when its host is
down; a `ClusterWatch` asks it in a thread of its own. Recipes go out and scores come back; weights
are read from disk by every worker.
"""

from __future__ import annotations

import math
import pickle
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from evomerge.core.candidate import Candidate
from evomerge.errors import ExecutorError, UnavailableError
from evomerge.runtime.assignments import Assignments, Seat
from evomerge.runtime.cluster_environment import exposed_token
from evomerge.runtime.cluster_watch import ClusterWatch, Planner, Sight
from evomerge.runtime.placement import worker_environment
from evomerge.runtime.placement_plan import ModelNeed, Wishes, WorkerShape, plan_workers
from evomerge.runtime.ray_cluster import Cluster, PlacedActor, RayNodes, node_strategy
from evomerge.runtime.scorer_actor import Reply, call_of, outcome_of
from evomerge.runtime.seat_changes import is_stranded, seat_changes
from evomerge.search.ports import Outcome

if TYPE_CHECKING:
    from evomerge.runtime.worker import CandidateScorer

SLOW_SECONDS = 60.0  # a worker that is not ready by then is mentioned in events.log
FETCH_SECONDS = 10.0  # for results that Ray already holds; their node may die meanwhile
# One call at a time, and nothing is repeated behind our back.
ONCE = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": 1}


class RayPool:
    """Scores candidates on the workers of a Ray cluster."""

    def __init__(
        self,
        factory: Callable[[str], CandidateScorer],
        *,
        workers: int,
        address: str | None,
        gpus_per_worker: float | None,
        cpus_per_worker: float,
        max_attempts: int,
        timeout_seconds: float,
        note: Callable[[str], None],
        insecure: bool = False,
        planner: Planner | None = None,
    ) -> None:
        """Connect and start the workers; returns before they are ready.

        Args:
            factory: Builds the worker of a name, in its own process; picklable by reference
                (a module's function, or a `functools.partial` of one).
            workers: How many. On a running cluster more than it has room for now is fine:
                the others start when nodes join.
            address: None starts a private cluster on this machine; "auto" or HOST:PORT joins.
            gpus_per_worker: None: 1 where the cluster has GPUs, else 0.
            cpus_per_worker: CPUs each reserves.
            max_attempts: How often a candidate is tried.
            timeout_seconds: Deadline of one attempt, from the moment a worker gets it.
            note: Writes a line to events.log.
            insecure: Join a cluster on other machines even if it has no authentication.
            planner: On a running cluster: nodes -> workers, asked again whenever nodes join or
                leave; None: `workers` of one kind, wherever there is room.

        Raises:
            ExecutorError: The cluster cannot be used, or the factory cannot be sent.
            PlacementError: The planner finds no place for a single worker.
        """
        try:
            self._factory = pickle.dumps(factory)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ExecutorError(f"the worker factory cannot be sent to workers: {error}") from None
        self._timeout_seconds = timeout_seconds
        self._note = note
        self._assignments = Assignments(
            max_attempts=max_attempts, timeout_seconds=timeout_seconds, note=note
        )
        n_cpus = max(1, math.ceil(workers * cpus_per_worker))
        self._cluster = Cluster(address, n_cpus, insecure=insecure)
        gpus = self._cluster.gpus_per_worker() if gpus_per_worker is None else gpus_per_worker
        wishes = Wishes(workers, gpus, cpus_per_worker)
        if address is not None and (token := exposed_token()):
            note(f"other users can read the Ray token: chmod 600 {token}")
        self._seats: list[Seat] = []
        self._n_seats = 0  # ever made
        self._idle: deque[Seat] = deque()
        self._pending: dict[Any, Seat] = {}  # object ref -> seat that will fill it
        self._by_name: dict[str, Seat] = {}
        self._was_ready = False
        self._is_closed = False
        self._watch: ClusterWatch | None = None
        alone = Sight((WorkerShape(cpus_per_worker, gpus),) * workers, frozenset(), frozenset())
        try:
            if address is not None:
                planner = planner or partial(plan_workers, need=ModelNeed(0, 0), wishes=wishes)
                self._watch = ClusterWatch(RayNodes(), planner, note=note)
            self._sight = self._watch.latest if self._watch is not None else alone
            self._seat_workers()
            self._start_workers()
        except ValueError as error:  # such as 1.5 GPUs
            self.close()
            raise ExecutorError(f"Ray refuses a worker with {alone.shapes[0]}: {error}") from None
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------- port

    def submit(self, candidate: Candidate) -> None:
        """Queue one candidate; returns at once."""
        if self._assignments.submit(candidate):
            self._dispatch()

    def wait(self, timeout: float) -> list[Outcome]:
        """Return what finished; blocks until something did or `timeout` seconds passed.

        Raises:
            ExecutorError: No worker can be built (the message is the factory's), a cluster
                started here broke down, or the head of another one has been away for long.
        """
        self._cluster.require_alive()
        if self._watch is not None:
            self._watch.require_answers()
        outcomes: list[Outcome] = []
        until = time.monotonic() + timeout
        while len(self._assignments):
            self._follow_cluster()
            self._start_workers()
            self._dispatch()
            for ref in self._finished_calls(until):
                outcomes += self._settle(ref)
            # After the results: one that has arrived is not late, however long this process
            # was away between two calls.
            outcomes += self._end_overdue()
            if outcomes or time.monotonic() >= until:
                break
        self._dispatch()  # the workers go on while the caller digests the results
        return outcomes

    def withdraw(self) -> list[int]:
        """Take back every queued candidate; one that waits for another attempt is queued."""
        return self._assignments.withdraw()

    def last_look(self) -> None:
        """Have every worker that waits look at its known models once more, if it has any.

        Raises:
            UnavailableError: Those of one worker say something else than at the start.
        """
        import ray

        calls = {seat.actor.last_look.remote(): seat.name for seat in self._idle}
        refs = list(calls)
        if not refs:
            return
        done, late = ray.wait(refs, num_returns=len(refs), timeout=self._timeout_seconds)
        failed = {calls[ref]: "deadline passed" for ref in late}
        for ref in done:
            try:
                reply: Reply = ray.get(ref, timeout=FETCH_SECONDS)
            except ray.exceptions.RayError as error:
                reply = Reply(error=str(error))
            if reply.unavailable:
                raise UnavailableError(reply.unavailable)
            if reply.error is not None:
                failed[calls[ref]] = reply.error
        for name, why in failed.items():
            self._note(f"worker {name}: its canary was not looked at in the end: {why}")

    def close(self) -> None:
        """End the worker processes, and the cluster when it was started here."""
        if self._is_closed:
            return
        self._is_closed = True
        for seat in self._seats:
            self._end(seat)
        if self._watch is not None:
            self._watch.stop()
        self._cluster.close()

    # ------------------------------------------------------------------ calls

    def _dispatch(self) -> None:
        while self._idle and self._assignments.has_queued:
            seat = self._idle.popleft()
            if _is_known_dead(seat.actor):  # while it was idle: costs no candidate an attempt
                self._note(f"worker {seat.name} died while idle")
                self._end(seat)
                self._start_workers()
                continue
            assignment = self._assignments.begin(seat.name)
            call = call_of(assignment.candidate, seat.sent)
            self._pending[seat.actor.evaluate.remote(*call)] = seat

    def _finished_calls(self, until: float) -> list[Any]:
        """Return the calls that have ended; waits for one until the next thing to look after."""
        import ray

        seats = [seat.not_before for seat in self._seats if seat.may_start]
        pause = min(until, self._assignments.next_deadline(), *seats) - time.monotonic()
        refs = list(self._pending)
        if not refs:
            time.sleep(max(0.0, pause))
            return []
        done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        if not done and pause > 0:
            done, _ = ray.wait(refs, num_returns=1, timeout=pause)
        return list(done)

    def _settle(self, ref: Any) -> list[Outcome]:
        import ray

        seat = self._pending.pop(ref)
        try:
            reply: Reply = ray.get(ref, timeout=FETCH_SECONDS)
        except ray.exceptions.RayTaskError as error:  # the call could not be unpickled there
            reply = Reply(error="the call failed in Ray", detail=str(error))
        except ray.exceptions.RayError as error:
            # Mostly a death. Whatever else it was, the state of that process is unknown.
            return self._worker_lost(seat, str(error))
        if not seat.is_ready:
            self._built(seat, reply)
            return []
        if seat.is_leaving:
            self._end(seat)
        else:
            self._idle.append(seat)
        if reply.error is not None:
            seat.sent.clear()  # perhaps the call has not arrived
            return self._assignments.lose(seat.name, reply.error, reply.detail)
        assignment = self._assignments.finish(seat.name)
        return [] if assignment is None else [outcome_of(reply, assignment, seat.name)]

    def _end_overdue(self) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for name in self._assignments.overdue():
            reason = f"deadline of {self._timeout_seconds:g} s passed"
            outcomes += self._assignments.lose(name, reason)
            self._end(self._by_name[name])  # a call that runs cannot be interrupted any other way
        return outcomes

    # ---------------------------------------------------------------- workers

    def _follow_cluster(self) -> None:
        """Take in what the watch has seen: nodes that joined, left or are about to leave."""
        if self._watch is None:
            return
        # A worker may outlive the news of its node's end, which then says where it cannot start.
        is_lost = any(s.actor is None and is_stranded(s, self._sight.staying) for s in self._seats)
        if self._watch.latest is self._sight and not is_lost:
            return
        self._sight = self._watch.latest
        for seat in self._seats:
            if seat.node in self._sight.draining and not seat.is_leaving:
                seat.is_leaving = True
                is_busy = seat.is_ready and seat not in self._idle
                self._note(
                    f"worker {seat.name}: its node is about to go; it "
                    + ("finishes what it scores" if is_busy else "ends")
                )
                if not is_busy:
                    self._end(seat)
        self._seat_workers()

    def _seat_workers(self) -> None:
        """Make the seats those that there should be, as far as that disturbs no one at work."""
        missing, idle = seat_changes(
            self._seats, self._sight.shapes, self._sight.staying if self._watch else None
        )
        for seat in idle:
            seat.is_leaving = True
            self._end(seat)
        # Busy or hung ones stay until they are heard of.
        self._seats = [seat for seat in self._seats if seat.actor or not seat.is_leaving]
        for shape in missing:
            self._seats.append(Seat(self._n_seats, shape))
            self._n_seats += 1

    def _start_workers(self) -> None:
        import ray

        now = time.monotonic()
        for seat in self._seats:
            if seat.may_start and now >= seat.not_before:
                seat.starts += 1
                seat.since = now
                seat.sent.clear()
                shape = seat.shape
                actor_class = ray.remote(PlacedActor).options(
                    num_cpus=shape.cpus,
                    num_gpus=shape.gpus,
                    scheduling_strategy=node_strategy(shape.node),
                    **ONCE,
                )
                seat.actor = actor_class.remote(worker_environment(shape.gpus))
                self._by_name[seat.name] = seat
                self._pending[seat.actor.build.remote(self._factory, seat.name, sys.path)] = seat
            elif seat.actor is not None and not seat.is_ready and seat.since < now - SLOW_SECONDS:
                seat.since = math.inf  # say it once
                self._note(
                    f"worker {seat.name}: not ready after {SLOW_SECONDS:g} s; it waits for free "
                    "CPUs or GPUs, or is still loading"
                )

    def _built(self, seat: Seat, reply: Reply) -> None:
        if reply.error is not None:
            self._build_failed(seat, reply.error, reply.detail)
            return
        seat.failed_builds, seat.is_ready, self._was_ready = 0, True, True
        seat.node = reply.value
        if reply.detail:
            self._note(f"worker {seat.name}: {reply.detail}")
        if seat.node in self._sight.draining:
            seat.is_leaving = True
            self._end(seat)
        else:
            self._idle.append(seat)

    def _worker_lost(self, seat: Seat, detail: str) -> list[Outcome]:
        if not seat.is_ready:
            self._build_failed(seat, None, detail)
            return []
        if seat.is_leaving:  # with its node, as announced
            self._assignments.give_back(seat.name, "its node has gone")
            self._end(seat)
            return []
        outcomes = self._assignments.lose(seat.name, "worker died", detail)
        self._end(seat)
        return outcomes

    def _build_failed(self, seat: Seat, error: str | None, detail: str) -> None:
        self._note(f"worker {seat.name}: not built: {error or 'it died'}\n{detail}".rstrip())
        self._end(seat)
        seat.failed_builds += 1
        seat.has_refused |= error is not None
        seat.not_before = time.monotonic() + 2.0 ** (seat.failed_builds - 1)
        # A factory that raised everywhere and never worked will go on raising. A death may be
        # the node's, and the next process may start on another one.
        hopeless = not self._was_ready and all(seat.has_refused for seat in self._seats)
        if hopeless or not any(s.actor or s.may_start for s in self._seats):
            last = error or "the process died; see events.log"
            raise ExecutorError(f"no worker could be built: {last}")

    def _end(self, seat: Seat) -> None:
        """End a seat's process; the answer to its call, if any, will not be looked at."""
        import ray

        if seat.actor is None:
            return
        self._pending = {ref: owner for ref, owner in self._pending.items() if owner is not seat}
        self._by_name.pop(seat.name, None)
        if seat in self._idle:
            self._idle.remove(seat)
        try:
            ray.kill(seat.actor)
        except (ray.exceptions.RayError, RuntimeError, ValueError) as error:
            self._note(f"worker {seat.name}: could not be ended: {error}")
        seat.actor = None
        seat.is_ready = False
        seat.node = ""


def _is_known_dead(actor: Any) -> bool:
    """Return whether this process has heard of an actor's death; asks nobody."""
    try:
        from ray.core.generated.gcs_pb2 import ActorTableData

        return bool(actor._get_local_state() == ActorTableData.ActorState.DEAD)
    except (ImportError, AttributeError):  # not a public interface of Ray
        return False
