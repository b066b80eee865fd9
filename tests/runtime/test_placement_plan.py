"""Plans for typical clusters, and what holds for any."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from evomerge.runtime.placement_plan import (
    MOST_SHARERS,
    USABLE,
    ModelNeed,
    NodeFacts,
    PlacementError,
    Plan,
    Wishes,
    WorkerShape,
    plan_workers,
)

GIB = 2**30
M135 = ModelNeed(135_000_000, 270_000_000, 2 * GIB // 10, GIB // 4, 3 * GIB // 2, GIB)
B7 = ModelNeed(7_000_000_000, 14_000_000_000, 2 * GIB, GIB, 8 * GIB, 8 * GIB)
B70 = ModelNeed(70_000_000_000, 140_000_000_000, 4 * GIB, GIB, 16 * GIB)


def node(name: str, gpus: int = 0, gib: float = 0, cpus: float = 16, memory: int = 64) -> NodeFacts:
    return NodeFacts(name, cpus, memory * GIB, (int(gib * GIB),) * gpus, f"id-{name}")


def counts(plan: Plan) -> list[tuple[int, float]]:
    return [(share.workers, share.shape.gpus if share.workers else 0.0) for share in plan.shares]


@pytest.mark.parametrize(
    ("nodes", "need", "expected"),
    [
        pytest.param([node("a", 1, 24)], M135, [(8, 0.125)], id="1x24-135M"),
        pytest.param([node("a", 8, 80)], B7, [(16, 0.5)], id="8x80-7B"),
        pytest.param([node("a", 8, 24)], B7, [(8, 1.0)], id="8x24-7B"),
        pytest.param([node("a", 8, 80)], B70, [(2, 3.0)], id="8x80-70B"),
        pytest.param(
            [node("s", 4, 24), node("l", 4, 80)], B7, [(4, 1.0), (12, 0.3333)], id="mixed-7B"
        ),
        pytest.param(
            [node("s", 4, 24), node("l", 4, 80)], B70, [(0, 0.0), (1, 3.0)], id="mixed-70B"
        ),
        pytest.param([node("head"), node("g", 2, 24)], B7, [(0, 0.0), (2, 1.0)], id="cpu-head"),
        pytest.param([node("laptop", cpus=8, memory=12)], M135, [(5, 0.0)], id="laptop"),
        pytest.param([node("a", 1, 24, cpus=3)], M135, [(3, 0.125)], id="few-cpus"),
    ],
)
def test_typical_clusters(nodes, need, expected) -> None:
    assert counts(plan_workers(nodes, need)) == expected


def test_what_fits_nowhere_is_refused_with_numbers_and_remedies() -> None:
    with pytest.raises(PlacementError) as caught:
        plan_workers([node("a", 2, 24)], B70)
    said = str(caught.value)
    for part in ("70e9 parameters", "2 x 24.0 GiB", "a: ", "endpoint", "runtime.device: cpu"):
        assert part in said
    with pytest.raises(PlacementError, match=r"needs 16\.\d GiB on one GPU") as caught:
        plan_workers([node("a", 1, 8)], B7)
    with pytest.raises(PlacementError, match=r"needs 23\.6 GiB of memory"):
        plan_workers([node("a", memory=16)], B7, Wishes(device="cpu"))
    with pytest.raises(PlacementError, match=r"0\.5 CPUs: too few"):
        plan_workers([node("a", cpus=0.5)], M135)


def test_what_does_not_divide_gets_one_gpu_or_none() -> None:
    engine = replace(B7, full_bytes=2**60, divides=False)
    assert counts(plan_workers([node("a", 8, 80)], engine)) == [(8, 1.0)]
    with pytest.raises(PlacementError, match=r"16\.\d GiB on one GPU, .*`engine:` uses one GPU"):
        plan_workers([node("a", 4, 12)], engine)
    assert counts(plan_workers([node("a", 4, 12)], B7)) == [(2, 2.0)]


def test_what_the_config_says_counts() -> None:
    cluster = [node("a", 2, 24), node("b", 2, 24)]
    assert counts(plan_workers(cluster, M135, Wishes(gpus_per_worker=1.0))) == [(2, 1.0), (2, 1.0)]
    assert counts(plan_workers(cluster, B70, Wishes(gpus_per_worker=2.0))) == [(1, 2.0), (1, 2.0)]
    on_cpu = plan_workers(cluster, M135, Wishes(device="cpu", cpus_per_worker=4.0))
    assert counts(on_cpu) == [(4, 0.0), (4, 0.0)]
    assert counts(plan_workers(cluster, M135, Wishes(workers=3))) == [(2, 1.0), (1, 1.0)]
    assert counts(plan_workers(cluster, M135, Wishes(workers=7))) == [(4, 0.5), (3, 0.5)]
    more = plan_workers(cluster, B7, Wishes(workers=6))
    assert (counts(more), more.waiting, more.workers) == ([(2, 1.0), (2, 1.0)], 2, 6)
    assert more.shapes() == [WorkerShape(1.0, 1.0)] * 6
    none_yet = plan_workers([node("head", cpus=0)], B7, Wishes(workers=2, gpus_per_worker=1.0))
    assert none_yet.shapes() == [WorkerShape(1.0, 1.0)] * 2
    assert none_yet.shapes()[0].bundle() == {"CPU": 1.0, "GPU": 1.0}


def test_workers_are_bound_to_nodes_only_where_it_matters() -> None:
    same = plan_workers([node("a", 2, 24), node("b", 2, 24)], B7)
    assert same.shapes() == [WorkerShape(1.0, 1.0)] * 4
    mixed = plan_workers([node("s", 1, 24), node("l", 1, 80)], B7)
    assert mixed.shapes() == [
        WorkerShape(1.0, 1.0, "id-s"),
        *[WorkerShape(1.0, 0.3333, "id-l")] * 3,
    ]
    little_memory = plan_workers([node("a", cpus=8, memory=4), node("b", cpus=2)], M135)
    assert {shape.node for shape in little_memory.shapes()} == {"id-a", "id-b"}


nodes_of = st.builds(
    NodeFacts,
    name=st.sampled_from("abc"),
    cpus=st.integers(0, 64).map(float),
    memory=st.integers(0, 512).map(lambda n: n * GIB),
    gpus=st.lists(st.integers(4, 160).map(lambda n: n * GIB), max_size=8).map(tuple),
    id=st.uuids().map(str),
)
needs = st.builds(
    ModelNeed,
    parameters=st.just(1),
    weight_bytes=st.integers(1, 300 * GIB),
    merge_bytes=st.integers(0, 8 * GIB),
    least_bytes=st.integers(0, 2 * GIB),
    full_bytes=st.integers(0, 32 * GIB),
    cpu_bytes=st.integers(0, 8 * GIB),
)
wished = st.builds(
    Wishes,
    workers=st.none() | st.integers(1, 40),
    cpus_per_worker=st.sampled_from([0.5, 1.0, 2.0, 8.0]),
    device=st.sampled_from(["auto", "cpu"]),
)


def planned(nodes, need, wishes) -> Plan:
    try:
        return plan_workers(nodes, need, wishes)
    except PlacementError:
        assume(False)
        raise


@settings(deadline=None, max_examples=150)
@given(st.lists(nodes_of, min_size=1, max_size=6), needs, wished)
def test_no_node_gives_more_than_it_has_and_every_worker_fits(nodes, need, wishes) -> None:
    plan = planned(nodes, need, wishes)
    if wishes.workers is not None:
        assert plan.workers == wishes.workers
    assert len(plan.shapes()) == plan.workers >= 1
    for share in plan.shares:
        place, shape = share.node, share.shape
        assert share.workers or share.reason
        assert share.workers * shape.cpus <= place.cpus
        if not share.workers:
            continue
        if not shape.gpus:
            assert share.workers * need.on_cpu() <= place.memory
            continue
        assert share.workers * shape.gpus <= len(place.gpus)
        if shape.gpus < 1:
            together = round(1 / shape.gpus)
            assert together <= MOST_SHARERS
            assert together * need.on_gpu(comfortable=True) <= place.least_gpu
        elif shape.gpus == 1:
            assert need.on_gpu(comfortable=False) <= place.least_gpu * USABLE
        else:
            assert shape.gpus == int(shape.gpus)
            assert need.on_each_of(int(shape.gpus)) <= place.least_gpu * USABLE


@settings(deadline=None, max_examples=150)
@given(st.lists(nodes_of, min_size=1, max_size=6), needs, st.data())
def test_more_of_anything_is_never_worse(nodes, need, data) -> None:
    plan = planned(nodes, need, Wishes())
    smaller = replace(need, weight_bytes=data.draw(st.integers(1, need.weight_bytes)))
    assert plan_workers(nodes, smaller).workers >= plan.workers
    which = data.draw(st.integers(0, len(nodes) - 1))
    place = nodes[which]
    larger = replace(
        place,
        cpus=place.cpus + data.draw(st.integers(0, 8)),
        memory=place.memory + data.draw(st.integers(0, 8)) * GIB,
        gpus=tuple(gpu + data.draw(st.integers(0, 40)) * GIB for gpu in place.gpus),
    )
    assert plan_workers([*nodes[:which], larger, *nodes[which + 1 :]], need).workers >= plan.workers
    one_more = replace(place, gpus=()) if plan.shares[which].shape.gpus == 0 else place
    assert plan_workers([*nodes, replace(one_more, id="new")], need).workers >= plan.workers


@settings(deadline=None, max_examples=100)
@given(st.lists(nodes_of, min_size=1, max_size=6), needs, wished)
def test_the_same_facts_give_the_same_plan(nodes, need, wishes) -> None:
    assert planned(nodes, need, wishes) == plan_workers(nodes, need, wishes)
