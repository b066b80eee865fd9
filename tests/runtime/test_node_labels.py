"""What a node's label says of its GPUs, and what of one that says nonsense."""

from __future__ import annotations

import pytest

from evomerge.runtime.placement_plan import NodeFacts
from evomerge.runtime.ray_cluster import GPU_LABEL, _facts

SEEN = NodeFacts("x", 8, 1 << 30, (5, 5))


def record(label: str | None) -> dict[str, object]:
    labels = {} if label is None else {GPU_LABEL: label}
    return {
        "NodeManagerAddress": "10.0.0.7",
        "NodeID": "id",
        "Resources": {"CPU": 4.0, "GPU": 2.0},
        "Labels": labels,
    }


def test_a_label_counts_more_than_what_the_driver_says() -> None:
    assert _facts(record(None), SEEN).gpus == (5, 5)
    assert _facts(record("24"), SEEN) == NodeFacts("10.0.0.7", 4.0, 1 << 30, (24 << 30,) * 2, "id")


@pytest.mark.parametrize("label", ["24GB", "", "nan", "inf"])
def test_a_label_that_makes_no_sense_is_the_trouble_of_its_node(label: str) -> None:
    trouble = _facts(record(label), SEEN).trouble
    assert "node 10.0.0.7: label evomerge-gpu-gib is" in trouble
    assert "such as 24" in trouble
