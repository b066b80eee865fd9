import pytest

from evomerge.errors import ConfigError
from evomerge.export.adapter_layout import has_conv1d, slot_of, task_type

LAYER = "model.layers.0."


@pytest.mark.parametrize(
    ("name", "shape", "slot"),
    [
        (f"{LAYER}self_attn.q_proj.weight", (4, 4), "linear"),
        (f"{LAYER}self_attn.q_proj.bias", (4,), "bias"),
        (f"{LAYER}input_layernorm.weight", (4,), "whole"),
        (f"{LAYER}mlp.gate.weight", (4, 4), "whole"),
        ("model.embed_tokens.weight", (9, 4), "embedding"),
        ("bert.embeddings.token_type_embeddings.weight", (2, 4), "embedding"),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (8, 2), "embedding"),
        ("embed_out.weight", (9, 4), "linear"),
        ("lm_head.weight", (9, 4), "linear"),
        ("vit.embeddings.patch_embeddings.projection.weight", (4, 3, 2, 2), "whole"),
    ],
)  # fmt: skip
def test_tensors_go_where_peft_loads_them(name, shape, slot):
    assert slot_of(name, shape, conv1d=False) == slot


def test_gpt2_has_conv1d_layers_but_a_linear_head():
    assert has_conv1d({"model_type": "gpt2"})
    assert not has_conv1d({"model_type": "llama"})
    assert not has_conv1d({})
    assert slot_of("h.0.attn.c_attn.weight", (4, 12), conv1d=True) == "conv1d"
    assert slot_of("lm_head.weight", (9, 4), conv1d=True) == "linear"
    assert slot_of("wte.weight", (9, 4), conv1d=True) == "embedding"


@pytest.mark.parametrize(
    "name", ["vit.embeddings.cls_token", f"{LAYER}mlp.experts.down_proj", "weight"]
)
def test_bare_parameters_are_refused(name):
    with pytest.raises(ConfigError, match=rf"{name}: .*Leave out --adapter"):
        slot_of(name, (1, 4), conv1d=False)


def test_only_a_task_type_that_adds_no_module_is_named():
    assert task_type("LlamaForCausalLM") == task_type("GPT2LMHeadModel") == "CAUSAL_LM"
    assert task_type("BertForSequenceClassification") is None
