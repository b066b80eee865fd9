"""manifest.json: which tensor takes which path."""

import json

import numpy as np
import pytest
import torch

from evomerge.core.recipe import Recipe
from evomerge.merging.manifest import manifest_of, summary_of
from evomerge.merging.virtual_source import virtual_sources
from tests.merging.delta_helpers import CALLS, Halves, Shares, run_of
from tests.merging.memory_source import SHAPES, MemorySource, make_sources, space_of

NORM = "model.norm.weight"
MLP = "model.layers.0.mlp.up_proj.weight"
W = {"weights": np.ones((1, 2))}


def test_it_names_merged_fallback_copied_and_left_out_tensors():
    sources = make_sources(2)
    same = sources["base"].tensors[MLP]
    for source in sources.values():
        source.tensors = {**source.tensors, MLP: same}
    extra = {**sources["e1"].tensors, "score.weight": torch.ones(2)}
    sources["e1"] = MemorySource("e1", extra)
    space = space_of(sources)
    found = manifest_of(Recipe("ties", space.sources, W), space, sources)
    assert json.loads(json.dumps(found)) == found
    assert (found["format"], found["merge"], found["transforms"]) == (1, "ties", [])
    assert list(found["tensors"]) == [tensor.spec.name for tensor in space.tensors]
    assert found["tensors"][MLP] == "copied: identical in every source"
    assert found["tensors"][NORM].startswith("fallback: at most one axis")
    assert found["tensors"]["model.embed_tokens.weight"] == "merged"
    assert found["left_out"] == dict(space.left_out)
    assert "score.weight" in found["left_out"]
    assert summary_of(found["tensors"]) == (
        "8 tensors: 4 merged, 3 fallback (at most one axis, combined without trim or vote), "
        "1 copied"
    )


@pytest.mark.parametrize(
    ("method", "settings", "path"),
    [
        ("ties", {}, "fallback: router, combined without trim or vote"),
        ("dare_linear", {}, "fallback: router, task arithmetic"),
        ("dare_linear", {"vectors": "include"}, "merged"),
        ("ties", {"compat": "mergekit"}, "merged"),
        ("task_arithmetic", {}, "merged"),
    ],
)
def test_routers_are_never_thinned_out_unless_asked_for(method, settings, path):
    router = "model.layers.0.mlp.gate.weight"
    sources = make_sources(2, shapes={router: (4, 6), MLP: (3, 6)})
    space = space_of(sources)
    paths = manifest_of(Recipe(method, space.sources, W, settings=settings), space, sources)
    assert paths["tensors"] == {router: path, MLP: "merged"}


def test_each_transform_says_what_it_skipped_without_computing():
    sources = make_sources(2)
    made = virtual_sources(run_of(Halves(), sources), ["h:e1", "h:e2"])
    other = virtual_sources(run_of(Shares(), sources), ["all"])
    everything = {**sources, **{source.id: source for source in (*made, *other)}}
    space = space_of(everything)
    CALLS.clear()
    recipe = Recipe("task_arithmetic", space.sources, {"weights": np.ones((1, 5))})
    halves, shares = manifest_of(recipe, space, everything)["transforms"]
    assert CALLS == []
    assert (halves["transform"], halves["sources"]) == ("halves", ["h:e1", "h:e2"])
    assert (shares["transform"], shares["sources"]) == ("shares", ["all"])
    assert halves["tensors"].keys() == SHAPES.keys()
    assert halves["tensors"][NORM] == "fallback: at most one axis, mean of the task vectors"
    assert halves["tensors"]["model.embed_tokens.weight"].startswith("fallback: embed")
    assert halves["tensors"][MLP] == "transformed"
    assert set(shares["tensors"].values()) == {"transformed"}
    assert summary_of(halves["tensors"]) == (
        "8 tensors: 4 transformed, 4 fallback (1 embed, mean of the task vectors; "
        "3 at most one axis, mean of the task vectors)"
    )


def test_a_transform_that_the_recipe_does_not_use_is_not_mentioned():
    sources = make_sources(2)
    made = virtual_sources(run_of(Shares(), sources), ["all"])
    everything = {**sources, "all": made[0]}
    space = space_of(everything)
    assert (
        manifest_of(Recipe("ties", ("base", "e1", "e2"), W), space, everything)["transforms"] == []
    )


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.qkv_proj.weight", (12, 4)),
        ("model.layers.0.mlp.experts.gate_up_proj", (2, 6, 4)),
        ("transformer.h.0.attn.c_attn.weight", (4, 12)),
    ],
)
def test_fused_tensors_are_counted_by_their_linear_maps(name, shape):
    sources = make_sources(1, shapes={name: shape})
    config = {"model_type": "gpt_neox", "num_attention_heads": 2, "hidden_size": 4}
    run = run_of(Halves(), sources, config=config)
    assert run.paths() == {name: "transformed"}
