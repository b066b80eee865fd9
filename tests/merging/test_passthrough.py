"""Passthrough: the expert itself, or times a scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError
from evomerge.merging.materialize import materialize
from evomerge.merging.passthrough import Passthrough
from evomerge.merging.plan import build_operators
from tests.merging.memory_source import MemorySource, make_sources, space_of
from tests.merging.test_properties import cases, error_of, fast

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden"


@fast
@given(cases(max_experts=1), st.sampled_from([0.0, 0.3, 1.4]))
def test_the_expert_comes_back_times_the_scale(inputs, scale):
    assert torch.equal(Passthrough().merge(inputs), inputs.experts[0])
    merged = Passthrough(scale=scale).merge(inputs)
    tolerance = 2.0 * torch.finfo(inputs.out_dtype).eps
    assert error_of(merged, scale * inputs.experts[0].double(), inputs) <= tolerance


@pytest.mark.skipif(not GOLDEN.exists(), reason="../shared/golden is not here")
@pytest.mark.parametrize(("case", "scale"), [("passthrough", 1.0), ("passthrough_scale", 0.5)])
def test_mergekit_0_1_5_gives_the_same_tensors(case, scale):
    sources = {
        name: MemorySource(name, load_file(GOLDEN / "inputs" / f"{name}.safetensors"))
        for name in ("base", "e1")
    }
    space = space_of(sources)
    recipe = Recipe("passthrough", space.sources, {"scale": np.array([scale])})
    golden = load_file(GOLDEN / "mk015" / f"{case}.safetensors")
    merged = dict(materialize(recipe, space, sources))
    assert set(merged) == set(golden)
    for name, expected in golden.items():
        if name == "frozen.weight":
            # Equal in base and expert, so it is copied; mergekit scales it.
            expected = expected / scale
        assert torch.equal(merged[name], expected), name


def test_two_experts_are_refused():
    sources = make_sources(2)
    space = space_of(sources)
    with pytest.raises(ConfigError, match="passthrough merges exactly 1 models, got 2 experts"):
        build_operators(Recipe("passthrough", space.sources, {}), space)
