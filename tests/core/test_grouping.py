"""Which tensors share a row of parameters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.core.grouping import assign_groups
from evomerge.core.tensor_names import order_key
from evomerge.errors import ConfigError

from .test_tensor_names import FAMILIES, names_of


def names(family: str, n_layers: int) -> list[str]:
    found = {name for layer in range(n_layers) for name in names_of(family, layer)}
    return sorted(found, key=order_key)


def members(grouping: str, tensors: list[str]) -> dict[str, list[str]]:
    labels, groups = assign_groups(grouping, tensors)
    return {
        label: [name for name, group in zip(tensors, groups, strict=True) if group == index]
        for index, label in enumerate(labels)
    }


def test_global_is_one_group():
    labels, groups = assign_groups("global", names("llama", 4))
    assert labels == ("all",)
    assert set(groups) == {0}


def test_layer_has_one_group_per_layer_with_embeddings_and_head_apart():
    found = members("layer", names("llama", 3))
    assert list(found) == ["embed", "layer.0", "layer.1", "layer.2", "head"]
    assert found["embed"] == ["model.embed_tokens.weight"]
    assert sorted(found["head"]) == ["lm_head.weight", "model.norm.weight"]
    assert len(found["layer.1"]) == 9


@pytest.mark.parametrize("family", ["bert", "distilbert", "vit", "gpt2", "roberta"])
def test_encoders_have_the_same_layer_groups(family):
    assert list(members("layer", names(family, 2))) == ["embed", "layer.0", "layer.1", "head"]


@pytest.mark.parametrize(
    ("n_blocks", "n_layers", "sizes"),
    [(1, 6, [6]), (2, 6, [3, 3]), (3, 8, [3, 3, 2]), (4, 6, [2, 1, 2, 1]), (9, 3, [1, 1, 1])],
)
def test_blocks_share_the_layers_evenly(n_blocks, n_layers, sizes):
    found = members(f"block:{n_blocks}", names("llama", n_layers))
    blocks = [label for label in found if label.startswith("block.")]
    assert blocks == [f"block.{i}" for i in range(len(sizes))]
    assert [len({name.split(".")[2] for name in found[label]}) for label in blocks] == sizes
    assert [label for label in found if label not in blocks] == ["embed", "head"]


def test_kind_joins_all_layers():
    found = members("kind", names("mixtral", 2))
    assert set(found) == {
        "embed", "norm", "attn.q", "attn.k", "attn.v", "attn.o",
        "router", "mlp.gate", "mlp.up", "mlp.down", "head",
    }  # fmt: skip
    assert len(found["attn.q"]) == 2


def test_module_is_layer_by_kind():
    found = members("module", names("qwen2", 2))
    assert found["layer.1.attn.k"] == [
        "model.layers.1.self_attn.k_proj.bias",
        "model.layers.1.self_attn.k_proj.weight",
    ]
    assert "embed" in found
    assert "head" in found


@pytest.mark.parametrize(
    "wrong", ["layers", "block:0", "block:-1", "block:x", "block:N", "block", ""]
)
def test_unknown_groupings_are_refused(wrong):
    with pytest.raises(ConfigError, match="is not a grouping"):
        assign_groups(wrong, names("llama", 2))


@given(
    family=st.sampled_from(sorted(FAMILIES)),
    grouping=st.sampled_from(["global", "layer", "kind", "module", "block:1", "block:3"]),
    n_layers=st.integers(1, 12),
)
def test_labels_are_unique_and_numbered_in_order_of_appearance(family, grouping, n_layers):
    tensors = names(family, n_layers)
    labels, groups = assign_groups(grouping, tensors)
    assert len(set(labels)) == len(labels)
    assert len(groups) == len(tensors)
    assert list(dict.fromkeys(groups)) == list(range(len(labels)))
