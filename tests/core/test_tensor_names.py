"""Kind and layer of every tensor in the checkpoints that people merge.

The names are those of files that transformers writes; `{i}` is the layer.
"""

import pytest

from evomerge.core.tensor_names import count_layers, order_key, place

WEIGHT_AND_BIAS = "+bias"  # both `.weight` and `.bias` exist

LLAMA_BLOCK = {
    "model.layers.{i}.self_attn.q_proj": "attn.q",
    "model.layers.{i}.self_attn.k_proj": "attn.k",
    "model.layers.{i}.self_attn.v_proj": "attn.v",
    "model.layers.{i}.self_attn.o_proj": "attn.o",
    "model.layers.{i}.mlp.gate_proj": "mlp.gate",
    "model.layers.{i}.mlp.up_proj": "mlp.up",
    "model.layers.{i}.mlp.down_proj": "mlp.down",
    "model.layers.{i}.input_layernorm": "norm",
    "model.layers.{i}.post_attention_layernorm": "norm",
}
DECODER_ENDS = {"model.embed_tokens": "embed", "model.norm": "norm", "lm_head": "head"}
BERT_BLOCK = {
    "{m}.encoder.layer.{i}.attention.self.query+bias": "attn.q",
    "{m}.encoder.layer.{i}.attention.self.key+bias": "attn.k",
    "{m}.encoder.layer.{i}.attention.self.value+bias": "attn.v",
    "{m}.encoder.layer.{i}.attention.output.dense+bias": "attn.o",
    "{m}.encoder.layer.{i}.attention.output.LayerNorm+bias": "norm",
    "{m}.encoder.layer.{i}.intermediate.dense+bias": "mlp.up",
    "{m}.encoder.layer.{i}.output.dense+bias": "mlp.down",
    "{m}.encoder.layer.{i}.output.LayerNorm+bias": "norm",
    "{m}.embeddings.word_embeddings": "embed",
    "{m}.embeddings.position_embeddings": "embed",
    "{m}.embeddings.token_type_embeddings": "embed",
    "{m}.embeddings.LayerNorm+bias": "norm",
}


def of(model: str, names: dict[str, str]) -> dict[str, str]:
    return {name.replace("{m}", model): kind for name, kind in names.items()}


FAMILIES = {
    "llama": LLAMA_BLOCK | DECODER_ENDS,
    "mistral": LLAMA_BLOCK | DECODER_ENDS,
    "qwen2": LLAMA_BLOCK
    | DECODER_ENDS
    | {f"model.layers.{{i}}.self_attn.{x}_proj+bias": f"attn.{x}" for x in "qkv"},
    "qwen3": LLAMA_BLOCK
    | DECODER_ENDS
    | {f"model.layers.{{i}}.self_attn.{x}_norm": "norm" for x in "qk"},
    "gemma2": LLAMA_BLOCK
    | {
        "model.layers.{i}.pre_feedforward_layernorm": "norm",
        "model.layers.{i}.post_feedforward_layernorm": "norm",
        "model.embed_tokens": "embed",
        "model.norm": "norm",
    },
    "phi3": DECODER_ENDS
    | {
        "model.layers.{i}.self_attn.qkv_proj": "attn.qkv",
        "model.layers.{i}.self_attn.o_proj": "attn.o",
        "model.layers.{i}.mlp.gate_up_proj": "mlp.gate_up",
        "model.layers.{i}.mlp.down_proj": "mlp.down",
        "model.layers.{i}.input_layernorm": "norm",
        "model.layers.{i}.post_attention_layernorm": "norm",
    },
    "mixtral": DECODER_ENDS
    | {name: kind for name, kind in LLAMA_BLOCK.items() if ".mlp." not in name}
    | {
        "model.layers.{i}.block_sparse_moe.gate": "router",
        "model.layers.{i}.block_sparse_moe.experts.1.w1": "mlp.gate",
        "model.layers.{i}.block_sparse_moe.experts.1.w2": "mlp.down",
        "model.layers.{i}.block_sparse_moe.experts.1.w3": "mlp.up",
    },
    "qwen2-moe": DECODER_ENDS
    | {name: kind for name, kind in LLAMA_BLOCK.items() if ".mlp." not in name}
    | {
        "model.layers.{i}.mlp.gate": "router",
        "model.layers.{i}.mlp.shared_expert_gate": "router",
        "model.layers.{i}.mlp.experts.1.gate_proj": "mlp.gate",
        "model.layers.{i}.mlp.experts.1.up_proj": "mlp.up",
        "model.layers.{i}.mlp.experts.1.down_proj": "mlp.down",
        "model.layers.{i}.mlp.shared_expert.gate_proj": "mlp.gate",
        "model.layers.{i}.mlp.shared_expert.up_proj": "mlp.up",
        "model.layers.{i}.mlp.shared_expert.down_proj": "mlp.down",
    },
    "other-routers": {
        "model.layers.{i}.block_sparse_moe.router.layer": "router",
        "model.layers.{i}.mlp.router.classifier": "router",
        "model.layers.{i}.mlp.router+bias": "router",
        "model.layers.{i}.mlp.gate.wg": "router",
        "model.layers.{i}.feed_forward.gate": "router",
        "model.layers.{i}.mixer.gate": "router",
        "model.layers.{i}.mixer.in_proj": "other",
    },
    "gpt2": {
        "transformer.h.{i}.attn.c_attn+bias": "attn.qkv",
        "transformer.h.{i}.attn.c_proj+bias": "attn.o",
        "transformer.h.{i}.mlp.c_fc+bias": "mlp.up",
        "transformer.h.{i}.mlp.c_proj+bias": "mlp.down",
        "transformer.h.{i}.ln_1+bias": "norm",
        "transformer.h.{i}.ln_2+bias": "norm",
        "transformer.ln_f+bias": "norm",
        "transformer.wte": "embed",
        "transformer.wpe": "embed",
    },
    "gpt2-without-prefix": {
        "h.{i}.attn.c_attn+bias": "attn.qkv",
        "h.{i}.ln_1+bias": "norm",
        "ln_f+bias": "norm",
        "wte": "embed",
        "wpe": "embed",
    },
    "gpt-neox": {
        "gpt_neox.layers.{i}.attention.query_key_value+bias": "attn.qkv",
        "gpt_neox.layers.{i}.attention.dense+bias": "attn.o",
        "gpt_neox.layers.{i}.mlp.dense_h_to_4h+bias": "mlp.up",
        "gpt_neox.layers.{i}.mlp.dense_4h_to_h+bias": "mlp.down",
        "gpt_neox.layers.{i}.input_layernorm+bias": "norm",
        "gpt_neox.layers.{i}.post_attention_layernorm+bias": "norm",
        "gpt_neox.final_layer_norm+bias": "norm",
        "gpt_neox.embed_in": "embed",
        "embed_out": "head",
    },
    "bert": of("bert", BERT_BLOCK) | {"bert.pooler.dense+bias": "head", "classifier+bias": "head"},
    "bert-pretraining": of("bert", BERT_BLOCK)
    | {
        "cls.predictions.transform.dense+bias": "head",
        "cls.predictions.transform.LayerNorm+bias": "head",
        "cls.seq_relationship+bias": "head",
    },
    "roberta": of("roberta", BERT_BLOCK)
    | {"classifier.dense+bias": "head", "classifier.out_proj+bias": "head"},
    "roberta-masked": of("roberta", BERT_BLOCK)
    | {"lm_head.dense+bias": "head", "lm_head.layer_norm+bias": "head"},
    "distilbert": {
        "distilbert.transformer.layer.{i}.attention.q_lin+bias": "attn.q",
        "distilbert.transformer.layer.{i}.attention.k_lin+bias": "attn.k",
        "distilbert.transformer.layer.{i}.attention.v_lin+bias": "attn.v",
        "distilbert.transformer.layer.{i}.attention.out_lin+bias": "attn.o",
        "distilbert.transformer.layer.{i}.sa_layer_norm+bias": "norm",
        "distilbert.transformer.layer.{i}.ffn.lin1+bias": "mlp.up",
        "distilbert.transformer.layer.{i}.ffn.lin2+bias": "mlp.down",
        "distilbert.transformer.layer.{i}.output_layer_norm+bias": "norm",
        "distilbert.embeddings.word_embeddings": "embed",
        "distilbert.embeddings.position_embeddings": "embed",
        "distilbert.embeddings.LayerNorm+bias": "norm",
        "pre_classifier+bias": "head",
        "classifier+bias": "head",
    },
    "distilbert-masked": {
        "vocab_transform+bias": "head",
        "vocab_layer_norm+bias": "head",
        "vocab_projector+bias": "head",
    },
    "vit": {
        "vit.encoder.layer.{i}.attention.attention.query+bias": "attn.q",
        "vit.encoder.layer.{i}.attention.attention.key+bias": "attn.k",
        "vit.encoder.layer.{i}.attention.attention.value+bias": "attn.v",
        "vit.encoder.layer.{i}.attention.output.dense+bias": "attn.o",
        "vit.encoder.layer.{i}.intermediate.dense+bias": "mlp.up",
        "vit.encoder.layer.{i}.output.dense+bias": "mlp.down",
        "vit.encoder.layer.{i}.layernorm_before+bias": "norm",
        "vit.encoder.layer.{i}.layernorm_after+bias": "norm",
        "vit.layernorm+bias": "norm",
        "vit.embeddings.patch_embeddings.projection+bias": "embed",
        "classifier+bias": "head",
    },
}
BARE = {  # tensors whose names end neither in .weight nor in .bias
    "vit.embeddings.cls_token": "embed",
    "vit.embeddings.position_embeddings": "embed",
    "vit.embeddings.mask_token": "embed",
}


def names_of(family: str, layer: int) -> dict[str, str]:
    """Return every tensor name of a family with its kind."""
    found = {}
    for pattern, kind in FAMILIES[family].items():
        stem = pattern.removesuffix(WEIGHT_AND_BIAS).replace("{i}", str(layer))
        ends = (".weight", ".bias") if pattern.endswith(WEIGHT_AND_BIAS) else (".weight",)
        found |= {stem + end: kind for end in ends}
    return found


@pytest.mark.parametrize("layer", [0, 7, 31, 100])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_a_family_is_placed(family, layer):
    for name, kind in names_of(family, layer).items():
        is_block = f".{layer}." in name or name.startswith(f"h.{layer}.")
        where = place(name)
        assert (name, where.kind) == (name, kind)
        assert (name, where.layer) == (name, layer if is_block else None)


@pytest.mark.parametrize(("name", "kind"), BARE.items())
def test_bare_parameters_are_placed(name, kind):
    assert (place(name).layer, place(name).kind) == (None, kind)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_outside_the_blocks_is_in_the_stem_or_the_tail(family):
    for name, kind in names_of(family, 3).items():
        where = place(name)
        if where.layer is not None:
            assert where.section == "blocks"
        elif kind == "head" or (kind == "norm" and "embeddings" not in name):
            assert (name, where.section) == (name, "tail")
        else:
            assert (name, where.section) == (name, "stem")


@pytest.mark.parametrize("family", FAMILIES)
def test_order_is_stem_blocks_by_number_then_tail(family):
    names = {name for layer in (2, 10, 0) for name in names_of(family, layer)}
    ordered = sorted(names, key=order_key)
    sections = [place(name).section for name in ordered]
    assert sections == sorted(sections, key=("stem", "blocks", "tail").index)
    layers = [layer for name in ordered if (layer := place(name).layer) is not None]
    assert layers == sorted(layers), "2 comes before 10"


@pytest.mark.parametrize(
    "name", ["buffer", "model.rotary.inv_freq", "h.0.attn.masked_bias", "x.y.z"]
)
def test_unknown_names_fall_back_to_other(name):
    assert place(name).kind == "other"


def test_label_joins_layer_and_kind():
    assert place("model.layers.3.self_attn.q_proj.weight").label == "layer.3.attn.q"
    assert place("model.embed_tokens.weight").label == "embed"


def test_layers_are_counted_from_the_names():
    assert count_layers(["model.layers.0.x", "model.layers.10.mlp.experts.40.w1.weight"]) == 11
    assert count_layers(["model.norm.weight"]) == 0
