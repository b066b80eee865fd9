"""Which linear maps a stored tensor consists of."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging.blocks import BlockLayout
from evomerge.merging.low_rank import LowRank

GQA = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 8, "model_type": "phi3"}


def layout(config=None, **shapes):
    return BlockLayout.of(config or {}, shapes)


def rows(n_rows, n_columns=8):
    """Row i is full of i, so that parts say which rows they are."""
    return torch.arange(n_rows, dtype=torch.float32)[:, None].expand(n_rows, n_columns).clone()


def firsts(parts):
    return [[int(value) for value in part[:, 0]] for part in parts]


def test_a_plain_matrix_is_one_map_and_vectors_stay_as_they_are():
    for shape in ((), (5,), (4, 3)):
        tensor = torch.randn(shape)
        (part,) = layout(GQA).split("model.layers.0.mlp.up_proj.weight", tensor)
        assert torch.equal(part, tensor)


def test_grouped_query_attention_splits_by_the_heads_of_the_config():
    parts = layout(GQA).split("model.layers.0.self_attn.qkv_proj.weight", rows(16))
    assert firsts(parts) == [list(range(8)), [8, 9, 10, 11], [12, 13, 14, 15]]


def test_head_dim_of_the_config_counts_where_it_is_not_width_by_heads():
    parts = layout({**GQA, "head_dim": 3}).split("layers.0.attn.qkv_proj.weight", rows(24))
    assert [len(part) for part in parts] == [12, 6, 6]


def test_a_text_config_inside_the_config_is_found():
    config = {"model_type": "llava", "text_config": GQA, "vision_config": {"hidden_size": 4}}
    parts = layout(config).split("language_model.layers.0.self_attn.qkv_proj.weight", rows(16))
    assert [len(part) for part in parts] == [8, 4, 4]
    vision = layout(config).split("vision_tower.blocks.0.attn.qkv.weight", rows(12, 4))
    assert firsts(vision) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize("kind", ["gpt_neox", "bloom", "persimmon"])
def test_families_that_store_heads_one_after_the_other_are_untangled(kind):
    config = {"model_type": kind, "num_attention_heads": 2, "hidden_size": 4}
    parts = layout(config).split("gpt_neox.layers.0.attention.query_key_value.weight", rows(12, 4))
    assert firsts(parts) == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]


def test_falcon_reads_multi_query_and_the_new_architecture():
    name = "transformer.h.0.self_attention.query_key_value.weight"
    base = {"model_type": "falcon", "num_attention_heads": 4, "hidden_size": 8}
    assert [len(p) for p in layout(base).split(name, rows(12))] == [8, 2, 2]
    new = {**base, "new_decoder_architecture": True, "num_kv_heads": 2}
    grouped = layout(new).split(name, rows(16))
    assert firsts(grouped) == [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 12, 13], [6, 7, 14, 15]]


def test_a_fused_projection_of_unknown_layout_stays_whole():
    (part,) = layout({"model_type": "gpt_neox"}).split("h.0.attn.query_key_value.weight", rows(24))
    assert len(part) == 24
    (part,) = layout().split("h.0.attn.qkv_proj.weight", rows(11))
    assert len(part) == 11


def test_gate_and_up_are_two_halves():
    parts = layout().split("model.layers.0.mlp.gate_up_proj.weight", rows(6))
    assert firsts(parts) == [[0, 1, 2], [3, 4, 5]]


def test_stacks_of_experts_come_one_by_one_and_inputs_first_ones_are_turned():
    stack = torch.randn(3, 6, 4)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    parts = layout().split(name, stack)
    assert len(parts) == 6
    assert torch.equal(parts[1], stack[0, 3:])
    turned = layout({"model_type": "llama4_text"}).split(name, stack)
    assert torch.equal(turned[0], stack[0].T[:2])
    interleaved = layout({"model_type": "gpt_oss"}).split(name, stack)
    assert torch.equal(interleaved[1], stack[0].T[1::2])
    biases = layout({"model_type": "gpt_oss"}).split(f"{name}_bias", rows(3))
    assert [part.dim() for part in biases] == [1, 1, 1]


def test_convolutions_are_outputs_by_the_rest():
    (part,) = layout().split(
        "embeddings.patch_embeddings.projection.weight", torch.randn(5, 3, 2, 2)
    )
    assert part.shape == (5, 12)


def test_conv1d_of_gpt2_is_turned_and_a_linear_of_that_name_is_not():
    name = "h.0.attn.c_attn.weight"
    weight = torch.randn(4, 12)
    parts = layout({}, **{name: (4, 12)}).split(name, weight)
    assert [tuple(part.shape) for part in parts] == [(4, 4)] * 3
    assert torch.equal(parts[1], weight[:, 4:8].T)
    proj = torch.randn(16, 4)
    (whole,) = layout({}, **{name: (4, 12)}).split("h.0.mlp.c_proj.weight", proj)
    assert torch.equal(whole, proj.T)
    config = {"model_type": "gpt_bigcode", "n_head": 2, "n_embd": 4}
    linear = layout(config, **{name: (8, 4)}).split(name, rows(8, 4))
    assert [len(part) for part in linear] == [4, 2, 2]


CASES = [
    (GQA, "layers.0.attn.qkv_proj.weight", (16, 8)),
    ({**GQA, "model_type": "internlm2"}, "layers.0.attn.wqkv.weight", (16, 8)),
    (
        {**GQA, "model_type": "codegen", "num_key_value_heads": 4},
        "h.0.attn.qkv_proj.weight",
        (24, 8),
    ),
    ({"model_type": "gpt_oss"}, "layers.0.mlp.experts.gate_up_proj", (2, 3, 4)),
    ({}, "layers.0.mlp.experts.down_proj", (2, 3, 4)),
    ({}, "h.0.attn.c_attn.weight", (4, 12)),
    ({}, "conv.weight", (3, 2, 2)),
    ({}, "norm.weight", (5,)),
    ({}, "scale", ()),
]


@settings(max_examples=30)
@given(case=st.sampled_from(CASES), seed=st.integers(0, 100))
def test_join_undoes_split(case, seed):
    config, name, shape = case
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    blocks = BlockLayout.of(config, {name: shape})
    before = tensor.clone()
    parts = blocks.split(name, tensor)
    assert sum(part.numel() for part in parts) == tensor.numel()
    assert torch.equal(blocks.join(name, parts, shape), before)
    assert torch.equal(tensor, before)


@pytest.mark.parametrize(("config", "name", "shape"), [CASES[0], CASES[5]])
def test_low_rank_factors_are_split_like_their_product(config, name, shape):
    generator = torch.Generator().manual_seed(0)
    turned = "c_attn" in name
    m, n = shape[::-1] if turned else shape
    factors = LowRank(
        torch.randn(2, n, generator=generator), torch.randn(m, 2, generator=generator), turned
    )
    blocks = BlockLayout.of(config, {name: shape})
    parts = blocks.split(name, factors.product())
    products = blocks.split_factors(name, factors, shape)
    assert len(parts) == len(products) == 3
    for part, product in zip(parts, products, strict=True):
        torch.testing.assert_close(product.product(), part)
    assert blocks.split_factors(name, None, shape) == (None,) * 3
