"""The watch, with a cluster that a test moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from evomerge.errors import ExecutorError
from evomerge.runtime import cluster_watch
from evomerge.runtime.cluster_watch import ClusterWatch
from evomerge.runtime.placement_plan import (
    ModelNeed,
    NodeFacts,
    PlacementError,
    Wishes,
    WorkerShape,
    plan_workers,
)

CPU = WorkerShape(1.0, 0.0)


class MovedCluster:
    """Nodes are names; each has as many CPUs as its name is long."""

    def __init__(self, *nodes: str) -> None:
        self.nodes, self.leaving = set(nodes), frozenset[str]()
        self.probed: list[str] = []
        self.requests: list[int] = []
        self.trouble = ""
        self.troubled: set[str] = set()

    def live(self) -> set[str]:
        if self.trouble:
            raise RuntimeError(self.trouble)
        return set(self.nodes)

    def draining(self) -> frozenset[str]:
        return self.leaving

    def probe(self, ids: Sequence[str]) -> list[NodeFacts]:
        self.probed += ids
        return [
            NodeFacts(
                node, len(node), 64 << 30, (), node,
                f"{node}: its label is wrong" if node in self.troubled else "",
            )
            for node in ids
        ]  # fmt: skip

    def request(self, shapes: Sequence[WorkerShape]) -> None:
        self.requests.append(len(shapes))


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_watch, "WATCH_SECONDS", 0.01)


def watch(cluster: MovedCluster, notes: list[str], workers: int | None = None) -> ClusterWatch:
    planner = partial(plan_workers, need=ModelNeed(0, 0), wishes=Wishes(workers))
    return ClusterWatch(cluster, planner, note=notes.append)


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_workers_follow_the_nodes() -> None:
    cluster, notes = MovedCluster("aa"), []
    seen = watch(cluster, notes)
    assert seen.latest.shapes == (CPU,) * 2
    cluster.nodes.add("bbb")
    wait_for(lambda: len(seen.latest.shapes) == 5)
    cluster.leaving = frozenset({"aa"})
    wait_for(lambda: len(seen.latest.shapes) == 3)
    assert seen.latest.draining == {"aa"}
    cluster.leaving = frozenset({"aa", "bbb"})
    wait_for(lambda: not seen.latest.shapes)
    cluster.nodes = {"c"}
    wait_for(lambda: len(seen.latest.shapes) == 1)
    seen.stop()
    assert cluster.probed == ["aa", "bbb", "c"], "a node is measured once, while it is empty"


def test_the_autoscaler_is_told_what_is_missing_and_that_it_is_over() -> None:
    cluster, notes = MovedCluster("aa"), []
    seen = watch(cluster, notes, workers=5)
    assert seen.latest.shapes == (CPU,) * 5
    assert cluster.requests == [5]
    assert "3 of 5 workers have no room" in notes[0]
    seen.stop()
    seen.stop()
    assert cluster.requests == [5, 0]


@pytest.mark.parametrize("workers", [None, 2])
@pytest.mark.parametrize("how", ["vanish", "drain"])
def test_when_no_node_is_left_the_autoscaler_is_asked_for_them_again(
    how: str, workers: int | None
) -> None:
    cluster, notes = MovedCluster("a", "b"), []
    seen = watch(cluster, notes, workers)
    assert (seen.latest.shapes, cluster.requests) == ((CPU,) * 2, [])
    if how == "vanish":
        cluster.nodes = set()
    else:
        cluster.leaving = frozenset({"a", "b"})
    wait_for(lambda: cluster.requests == [2])
    assert "no node is left" in notes[0]
    cluster.nodes = {"cc"}
    wait_for(lambda: len(seen.latest.shapes) == 2)
    cluster.nodes = set()
    wait_for(lambda: not seen.latest.live)
    assert cluster.requests == [2], "that still stands"
    seen.stop()
    assert cluster.requests == [2, 0]


def test_a_request_that_failed_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, notes = MovedCluster("a"), []
    seen = watch(cluster, notes)
    request, tries = cluster.request, []

    def fail_once(shapes: Sequence[WorkerShape]) -> None:
        tries.append(shapes)
        if len(tries) == 1:
            raise RuntimeError("no control store")
        request(shapes)

    monkeypatch.setattr(cluster, "request", fail_once)
    cluster.nodes = set()
    wait_for(lambda: cluster.requests == [1])
    seen.stop()


def test_a_node_that_says_nonsense_stops_no_search_and_no_later_look() -> None:
    cluster, notes = MovedCluster("aa"), []
    seen = watch(cluster, notes)
    cluster.troubled = {"bbb"}
    cluster.nodes = {"aa", "bbb"}
    wait_for(lambda: bool(notes))
    cluster.nodes = {"aa", "bbb", "c"}
    wait_for(lambda: len(seen.latest.shapes) == 3)
    seen.stop()
    assert cluster.probed == ["aa", "bbb", "c"]
    assert notes == ["bbb: its label is wrong; until it is mended and restarted it gets no worker"]
    with pytest.raises(ExecutorError, match="bbb: its label is wrong"):
        watch(cluster, [])


def test_the_autoscaler_is_told_the_end_while_a_node_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster_watch, "STOP_SECONDS", 0.2)
    cluster, begun, answers = MovedCluster("aa"), threading.Event(), threading.Event()
    seen = watch(cluster, [], workers=5)

    def probe(ids: Sequence[str]) -> list[NodeFacts]:
        begun.set()
        answers.wait(20)
        return [NodeFacts(node, 1, 64 << 30, (), node) for node in ids]

    monkeypatch.setattr(cluster, "probe", probe)
    cluster.nodes = {"b", "aa"}
    assert begun.wait(20)
    seen.stop()
    assert cluster.requests == [5, 0]
    answers.set()
    seen.stop()
    assert cluster.requests == [5, 0]


def test_a_cluster_that_does_not_answer_is_mentioned_once_and_asked_again() -> None:
    cluster, notes = MovedCluster("aa"), []
    seen = watch(cluster, notes)
    cluster.trouble = "no control store"
    wait_for(lambda: bool(notes))
    time.sleep(0.1)
    assert notes == ["the cluster could not be asked for its nodes: no control store"]
    cluster.nodes.add("b")
    cluster.trouble = ""
    wait_for(lambda: len(seen.latest.shapes) == 3)
    seen.stop()


def test_a_control_store_that_stays_silent_is_an_error_before_ray_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "2")
    cluster, answers = MovedCluster("aa"), threading.Event()
    seen = watch(cluster, [], workers=5)
    live, asked = cluster.live, threading.Event()

    def hang() -> set[str]:
        asked.set()
        answers.wait(20)
        return live()

    monkeypatch.setattr(cluster, "live", hang)
    assert asked.wait(20)
    seen.require_answers()  # not yet: it may come back
    with pytest.raises(ExecutorError, match="has not answered for 1 s: its head is down or cut"):
        wait_for(lambda: seen.require_answers() is not None)
    seen.stop()
    assert cluster.requests == [5], "nobody is there to be told the end"
    answers.set()


def test_a_cluster_without_room_is_refused_at_the_start() -> None:
    with pytest.raises(PlacementError, match="no node can hold a worker"):
        watch(MovedCluster(), [])
