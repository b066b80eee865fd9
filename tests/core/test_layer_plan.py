"""LayerPlan: what it checks, and its JSON."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.core.layer_plan import MAX_LAYERS, LayerPlan, LayerSlot
from evomerge.core.tensor_names import block_parts
from evomerge.errors import ConfigError

slots = st.builds(
    LayerSlot,
    st.sampled_from(["a", "b", "c-2"]),
    st.integers(0, 200),
    st.floats(allow_nan=False, allow_infinity=False) | st.just(1.0),
)
plans = st.builds(
    LayerPlan,
    st.lists(slots, min_size=1, max_size=8).map(tuple),
    st.sampled_from("ab"),
    st.sampled_from("ab"),
)


@given(plans)
def test_json_gives_the_plan_back(plan):
    assert LayerPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_layer_in_json_has_a_scale_only_where_it_is_not_one():
    plan = LayerPlan((LayerSlot("a", 3), LayerSlot("b", 4, 0.5)), "a", "b")
    body = {"format": 1, "stem": "a", "tail": "b", "layers": [["a", 3], ["b", 4, 0.5]]}
    assert plan.to_json() == body
    assert plan.sources == ("a", "b")
    assert LayerPlan.whole("a", 2).layers == (LayerSlot("a", 0), LayerSlot("a", 1))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "format is 2"),
        ({"layers": []}, "no layers"),
        ({"layers": [["a", 0]] * (MAX_LAYERS + 1)}, "at most 4096"),
        ({"layers": {"a": 0}}, "layers must be a list"),
        ({"layers": [["a"]]}, "layers must be a list"),
        ({"layers": [["a", -1]]}, "-1 is not the index"),
        ({"layers": [["a", True]]}, "True is not the index"),
        ({"layers": [["a", 1.0]]}, "1.0 is not the index"),
        ({"layers": [[3, 1]]}, "3 is not the name"),
        ({"layers": [["a", 1, math.inf]]}, "inf is not a finite"),
        ({"layers": [["a", 1, "x"]]}, "'x' is not a finite"),
        ({"stem": ""}, "stem '' is not the name"),
        ({"tail": None}, "tail None is not the name"),
        ({"extra": 1}, "expected a mapping with format, layers, stem, tail"),
    ],
)
def test_broken_json_is_refused_by_place(change, says):
    body = LayerPlan.whole("a", 2).to_json() | change
    with pytest.raises(ConfigError, match=says) as caught:
        LayerPlan.from_json(body, where="r.json: stacks.0.plan")
    assert str(caught.value).startswith("r.json: stacks.0.plan: ")


def test_check_names_what_the_sources_lack():
    plan = LayerPlan((LayerSlot("math", 0), LayerSlot("math", 7)), "math", "math")
    plan.check({"math": 8})
    with pytest.raises(ConfigError, match=r"layer 1 is layer 7 of 'math', which has 7 layers"):
        plan.check({"math": 7})
    with pytest.raises(ConfigError, match=r"'math' is not a source. Did you mean 'maths'"):
        plan.check({"maths": 8})


def test_repeats_can_be_capped():
    plan = LayerPlan((LayerSlot("a", 0), LayerSlot("a", 1), LayerSlot("a", 1, 0.5)), "a", "a")
    plan.check({"a": 2})
    plan.check({"a": 2}, max_repeats=2)
    with pytest.raises(ConfigError, match=r"layer 1 of 'a' occurs 2 times, at most 1"):
        plan.check({"a": 2}, max_repeats=1)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("model.layers.12.mlp.experts.3.w2.weight", ("model.layers.", 12, ".mlp.experts.3.w2.weight")),
        ("h.0.attn.c_attn.bias", ("h.", 0, ".attn.c_attn.bias")),
        ("lm_head.weight", None),
    ],
)  # fmt: skip
def test_only_the_index_of_the_block_is_taken_apart(name, parts):
    assert block_parts(name) == parts
