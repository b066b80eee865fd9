"""`merge: {name: layer_sequence}` as a config section."""

import pytest

from evomerge.config.layer_sequence import read_rules
from evomerge.config.merge_space import build_space
from evomerge.core.layer_sequence import plan_of
from evomerge.core.model_space import SourceHeader, TensorSpec, align
from evomerge.core.space_json import space_to_json
from evomerge.errors import ConfigError

NAMES = tuple(f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(3))
SPECS = {name: TensorSpec(name, "F32", (2, 2)) for name in NAMES}
MODEL = align(
    [SourceHeader(s, "L", SPECS, dict.fromkeys(NAMES, s)) for s in ("base", "x", "y")],
    has_base=True,
)


def build(body, founders="all", **options):
    return build_space(
        {"name": "layer_sequence", **body}, MODEL, founders=founders, span=None, **options
    )


def test_defaults_are_spelled_out_and_mean_the_same():
    space, resolved = build({"scaling": "layer"})
    assert resolved["start"] == "x"
    again, twice = build(resolved)
    assert twice == resolved
    assert space_to_json(again) == space_to_json(space)
    assert (space.sources, space.dimension) == (("x", "y"), 6 + 6)


def test_founders_are_the_start_model_and_the_layers_of_the_others():
    space, _ = build({"start": "y"}, n_layers={"x": 2, "y": 3})
    assert [p.origin for p in space.founders] == ["founder: y", "founder: layers of x"]
    plans = [plan_of(p.recipe) for p in space.founders]
    assert {plan.stem for plan in plans} == {"y"}
    assert [len(plan.layers) for plan in plans] == [3, 2]
    assert all(space.encode(p.recipe) is not None for p in space.founders)
    assert build({}, founders="none")[0].founders == ()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"repeat": 2}, r"merge\.repeat is not a parameter of 'layer_sequence'.*'repeats'"),
        ({"scaling": "rows"}, r"merge\.scaling"),
        ({"max_scale": 9.0}, r"merge\.max_scale is 9, must be above 1 and at most 4"),
        ({"start": "base"}, r"merge\.start: 'base' is not a model whose layers are searched"),
    ],
)
def test_a_wrong_key_is_named(body, says):
    with pytest.raises(ConfigError, match=says):
        build(body)


def test_rules_are_what_the_section_says():
    rules = read_rules({"name": "layer_sequence", "repeats": 2, "max_layers": 40})
    assert (rules.repeats, rules.max_layers, rules.start) == (2, 40, None)
