"""mergekit's `slices:` -> layer plans and recipes."""

from __future__ import annotations

import pytest
import torch

from evomerge.config.merge_file import merge_file
from evomerge.config.mergekit_slices import read_slices
from evomerge.core.layer_plan import LayerPlan, LayerSlot
from evomerge.core.model_space import lone
from evomerge.errors import ConfigError
from evomerge.storage.model_folder import ModelFolder
from tests.config.test_mergekit_yaml import GOLDEN, llama_space, needs_golden, values_by_name, write

TWO = """
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 3]}]
  - sources:
      - model: b
        layer_range: [1, 3]
        parameters:
          scale: [{filter: o_proj, value: 0.0}, {filter: down_proj, value: 0.5}, {value: 1.0}]
dtype: bfloat16
"""


def layers(source, *indices):
    return tuple(LayerSlot(source, index) for index in indices)


def test_a_published_frankenmerge(tmp_path):
    sliced = read_slices(write(tmp_path, TWO))
    assert [model.model for model in sliced.models] == ["a", "b"]
    assert (sliced.donor.model, sliced.dtype, sliced.has_base) == ("a", "bfloat16", False)
    assert sliced.stacks(["A", "B"]) == [
        LayerPlan(layers("A", 0, 1, 2) + layers("B", 1, 2), "A", "B")
    ]
    space = stack_space(n_layers=5)
    recipe = sliced.recipe(space)
    assert (recipe.operator, recipe.sources, recipe.grouping) == ("passthrough", ("s",), "module")
    scale = values_by_name(recipe, space, "scale")
    for layer in range(5):
        is_scaled = layer >= 3
        assert scale[f"model.layers.{layer}.self_attn.o_proj.weight"] == (0.0 if is_scaled else 1.0)
        assert scale[f"model.layers.{layer}.mlp.down_proj.weight"] == (0.5 if is_scaled else 1.0)
        assert scale[f"model.layers.{layer}.self_attn.q_proj.weight"] == 1.0
    # The last slice's rules hold for what comes after the layers, too; none of them filters it.
    assert scale["lm_head.weight"] == scale["model.embed_tokens.weight"] == 1.0


def stack_space(n_layers):
    space = llama_space(("s", "t"), has_base=False, n_layers=n_layers)
    specs = {tensor.spec.name: tensor.spec for tensor in space.tensors}
    from evomerge.core.model_space import SourceHeader

    return lone(SourceHeader("s", "LlamaForCausalLM", specs, dict.fromkeys(specs, "")))


def test_the_base_model_of_a_passthrough_gives_config_and_tokenizer(tmp_path):
    sliced = read_slices(write(tmp_path, TWO.replace("slices:", "base_model: c\nslices:")))
    assert [model.model for model in sliced.models] == ["c", "a", "b"]
    assert sliced.stacks(["C", "A", "B"])[0].sources == ("A", "B")


def test_gradients_run_over_each_slice_and_filters_see_the_models_own_names(tmp_path):
    text = """
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 3], parameters: {scale: [0, 1]}}]
  - sources:
      - model: a
        layer_range: [1, 3]
        parameters: {scale: [{filter: layers.2., value: 0.25}, {value: [0.5, 0.75]}]}
  - sources: [{model: a, layer_range: [2, 3], parameters: {scale: [0.1, 0.2]}}]
"""
    space = stack_space(n_layers=6)
    recipe = read_slices(write(tmp_path, text)).recipe(space)
    scale = values_by_name(recipe, space, "scale")
    found = [scale[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in range(6)]
    assert found == [0.0, 0.5, 1.0, 0.5, 0.25, 0.2]
    assert scale["model.embed_tokens.weight"] == 0.0
    assert scale["model.norm.weight"] == scale["lm_head.weight"] == 0.2


def test_several_sources_per_slice_are_stacks_that_are_merged(tmp_path):
    text = """
merge_method: slerp
base_model: a
slices:
  - sources: [{model: b, layer_range: [2, 4]}, {model: a, layer_range: [0, 2]}]
    parameters: {t: 0.25}
  - sources: [{model: a, layer_range: [1, 3]}, {model: b, layer_range: [1, 3]}]
parameters: {t: [{filter: mlp, value: 1.0}, {value: [0, 1]}]}
"""
    sliced = read_slices(write(tmp_path, text))
    assert sliced.has_base
    assert sliced.stacks(["A", "B"]) == [
        LayerPlan(layers("A", 0, 1, 1, 2), "A", "A"),
        LayerPlan(layers("B", 2, 3, 1, 2), "B", "B"),
    ]
    space = llama_space(("s-1", "s-2"), has_base=True)
    t = values_by_name(sliced.recipe(space), space, "t")
    assert [t[f"model.layers.{i}.self_attn.q_proj.weight"] for i in range(4)] == [
        0.25, 0.25, 0.0, 1.0
    ]  # fmt: skip
    assert t["model.layers.1.mlp.up_proj.weight"] == 0.25
    assert t["model.layers.2.mlp.up_proj.weight"] == 1.0
    assert t["model.embed_tokens.weight"] == 0.25
    assert t["lm_head.weight"] == 1.0


def test_other_models_per_slice_keep_their_places(tmp_path):
    text = """
merge_method: ties
base_model: base
slices:
  - sources:
      - {model: base, layer_range: [0, 2]}
      - {model: a, layer_range: [0, 2], parameters: {weight: 0.5}}
  - sources:
      - {model: b, layer_range: [2, 3], parameters: {weight: 0.75}}
      - {model: base, layer_range: [2, 3]}
parameters: {density: 0.5}
"""
    sliced = read_slices(write(tmp_path, text))
    assert sliced.stacks(["base", "a", "b"]) == [
        LayerPlan.whole("base", 3),
        LayerPlan(layers("a", 0, 1) + layers("b", 2), "a", "b"),
    ]
    space = llama_space(("s-1", "s-2"), has_base=True, n_layers=3)
    weights = values_by_name(sliced.recipe(space), space, "weights")
    found = [weights[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(3)]
    assert found == [[0.5], [0.5], [0.75]]


WHOLE = """
merge_method: linear
parameters: {weight: 1}
slices: [{sources: [{model: a, layer_range: [0, 4]}, {model: b, layer_range: [0, 4]}]}]
"""


def test_whole_models_are_told_from_stacks(tmp_path):
    sliced = read_slices(write(tmp_path, WHOLE))
    assert sliced.is_whole([4, 4])
    assert not sliced.is_whole([4, 6])
    one = read_slices(write(tmp_path, WHOLE.replace("0, 4", "0, 2")))
    assert not one.is_whole([4, 4])
    assert not read_slices(write(tmp_path, TWO)).is_whole([3, 3])
    assert read_slices(write(tmp_path, "merge_method: linear\nmodels: [{model: a}]\n")) is None


SLICE = "  - sources: [{model: a, layer_range: [0, 2]}]\n"
PASS = "merge_method: passthrough\nslices:\n"
TIES = "merge_method: ties\nbase_model: base\nparameters: {weight: 1}\nslices:\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PASS + SLICE + "models: []\n", "exactly one of `models` and `slices`"),
        ("merge_method: passthrough\n", "exactly one of `models` and `slices`"),
        ("merge_method: passthrough\nslices: []\n", "slices: expected a list"),
        (PASS + "  - sources: []\n", "slices.0.sources: expected a list"),
        (PASS + SLICE.replace("[0, 2]", "[2, 2]"), r"slices.0.sources.0.layer_range: \[2, 2\]"),
        (PASS + SLICE.replace("[0, 2]", "[-1, 2]"), r"layer_range: \[-1, 2\]"),
        (PASS + SLICE.replace("[0, 2]", "[0, 2.0]"), "layer_range"),
        (PASS + SLICE.replace("[0, 2]", "all"), "layer_range: 'all'"),
        (PASS + "  - sources: [{model: a}]\n", "layer_range: None"),
        (PASS + SLICE.replace("[0, 2]", "[0, 9999999]"), "more than 4096 layers"),
        (PASS + SLICE + "  - {residual_weight: 1}\n", "slices.1.residual_weight"),
        (
            PASS + "  - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]\n",
            "takes one model at a time, got 2",
        ),
        (PASS + SLICE + "parameters: {weight: 1}\n", "weight is not a parameter of passthrough"),
        (PASS + SLICE + "tokenizer_source: union\n", "tokenizer_source: 'union'"),
        (PASS + SLICE + "modules: {}\n", "modules: evomerge does not read"),
        (
            "merge_method: passthrough\nbase_model: b\nmodels: [{model: a}]\n",
            "takes it as one more model",
        ),
        (
            TIES + "  - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 3]}]\n",
            "slices.0: its sources have different numbers of layers",
        ),
        (
            TIES + SLICE + "  - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]\n",
            "slices.1: 3 models, slices.0 has 2",
        ),
        (
            TIES + SLICE + SLICE + "    parameters: {normalize: false}\n",
            "slices.1: its settings differ from those of slices.0",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_file_and_key(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_slices(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_base_that_a_slice_leaves_out_is_missed(tmp_path):
    sliced = read_slices(write(tmp_path, TIES + SLICE))
    with pytest.raises(ConfigError, match=r"slices.0.sources: base_model is missing; list it"):
        sliced.stacks(["base", "a"])


@needs_golden
@pytest.mark.parametrize("case", ["passthrough", "passthrough_scale"])
def test_mergekits_passthrough_of_one_model_gives_its_tensors(case, tmp_path):
    path = tmp_path / "merge.yml"
    path.write_text(
        (GOLDEN / "mk015" / f"{case}.yml").read_text().replace("inputs/", f"{GOLDEN}/inputs/")
    )
    done = merge_file(path, tmp_path / "out")
    merged = ModelFolder("merged", tmp_path / "out" / "model.safetensors")
    golden = ModelFolder("golden", GOLDEN / "mk015" / f"{case}.safetensors")
    assert set(merged.specs) == set(golden.specs)
    assert all(torch.equal(merged.read(name), golden.read(name)) for name in golden.specs)
    again = merge_file(tmp_path / "out" / "recipe.json", tmp_path / "again")
    assert again.weights_digest == done.weights_digest
