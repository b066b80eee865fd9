import importlib.util
import json
import math

import pytest
import torch

from evomerge.errors import SourceError
from evomerge.merging.source import TensorSource
from evomerge.storage.lora_config import adapter_base_name
from evomerge.storage.lora_source import LoraSource
from evomerge.storage.model_folder import ModelFolder

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Q, NORM = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"
MODULE = Q.removesuffix(".weight")
CONV1D, CONV = "h.0.attn.c_attn.weight", "conv.weight"
LLAMA = {"architectures": ["LlamaForCausalLM"]}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def base_tensors():
    return {
        EMBED: randn(7, 4).bfloat16(),
        Q: randn(6, 4).bfloat16(),
        Q.replace("weight", "bias"): randn(6),
        CONV1D: randn(4, 12),
        CONV: randn(5, 3, 2, 2),
        NORM: randn(4),
    }


def factors(module=MODULE, out=6, n_in=4, rank=2, infix=""):
    return {
        f"{module}.lora_A{infix}.weight": randn(rank, n_in, seed=1),
        f"{module}.lora_B{infix}.weight": randn(out, rank, seed=2),
    }


@pytest.fixture
def base(tmp_path, save_model):
    return ModelFolder("base", save_model(tmp_path / "base", base_tensors(), LLAMA))


@pytest.mark.parametrize("infix", ["", ".default"])
def test_the_delta_is_the_scaled_product(infix, base, tmp_path, save_adapter):
    adapter = factors(infix=infix)
    lora = LoraSource("a", save_adapter(tmp_path / "l", adapter), base)
    source: TensorSource = lora
    a, b = adapter.values()
    expected = (b.double() @ a.double() * (4 / 2)).float()
    delta = source.exact_delta(Q)
    assert delta.dtype == torch.float32
    torch.testing.assert_close(delta, expected)
    assert torch.equal(source.read(Q), base.read(Q).float() + delta)
    assert lora.header().tensors[Q].dtype == "F32"
    for start in range(24):
        assert torch.equal(source.read_range(Q, start, 24), source.read(Q).flatten()[start:])


@pytest.mark.parametrize(
    ("module", "sizes", "config"),
    [
        (MODULE, {}, {}),
        ("h.0.attn.c_attn", {"out": 12, "n_in": 4}, {"fan_in_fan_out": True}),
    ],
)
def test_the_factors_multiply_to_the_delta(module, sizes, config, base, tmp_path, save_adapter):
    lora = LoraSource("a", save_adapter(tmp_path / "l", factors(module, **sizes), **config), base)
    name = f"{module}.weight"
    a, b, is_transposed = lora.factors(name)
    assert is_transposed == bool(config)
    assert a.shape[0] == b.shape[1] == 2
    product = b @ a
    torch.testing.assert_close(product.T if is_transposed else product, lora.exact_delta(name))
    assert lora.factors(NORM) is None
    assert base.factors(name) is None


def test_an_adapter_on_another_base_has_no_factors(base, tmp_path, save_adapter):
    folder = save_adapter(tmp_path / "l", factors())
    assert LoraSource("a", folder, base, knows_delta=False).factors(Q) is None


def test_untouched_tensors_are_the_bases(base, tmp_path, save_adapter):
    lora = LoraSource("a", save_adapter(tmp_path / "l", factors()), base)
    header = lora.header()
    for name in base.specs.keys() - {Q}:
        assert lora.exact_delta(name) is None
        assert torch.equal(lora.read(name), base.read(name))
        assert torch.equal(lora.read_range(name, 1, 3), base.read_range(name, 1, 3))
        assert header.digests[name] == base.header().digests[name]
        assert header.tensors[name] == base.specs[name]
    assert header.digests[Q] != base.header().digests[Q]
    assert header.architecture == "LlamaForCausalLM"
    assert lora.digest != base.digest


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 3}, 1.5),
        ({"lora_alpha": 3, "use_rslora": True}, 3 / math.sqrt(2)),
        ({"alpha_pattern": {"q_proj": 10}}, 5.0),
        ({"r": 8, "rank_pattern": {"q_proj": 2}}, 2.0),
        ({"bias": "lora_only"}, 2.0),
    ],
)
def test_the_scale_follows_the_config(config, scale, base, tmp_path, save_adapter):
    lora = LoraSource("a", save_adapter(tmp_path / "l", factors(), **config), base)
    a, b = factors().values()
    torch.testing.assert_close(lora.exact_delta(Q), b @ a * scale)


def test_an_embedding_adapter_is_transposed(base, tmp_path, save_adapter):
    a, b = randn(2, 7), randn(4, 2)
    for infix in ("", ".default"):
        adapter = {
            f"model.embed_tokens.lora_embedding_A{infix}": a,
            f"model.embed_tokens.lora_embedding_B{infix}": b,
        }
        lora = LoraSource("a", save_adapter(tmp_path / f"l{infix}", adapter), base)
        torch.testing.assert_close(lora.exact_delta(EMBED), (b @ a).T * 2)
        assert lora.exact_delta(EMBED).is_contiguous()


def test_a_conv1d_of_gpt2_is_transposed(base, tmp_path, save_adapter):
    adapter = factors("transformer.h.0.attn.c_attn", 12, 4)
    lora = LoraSource("a", save_adapter(tmp_path / "l", adapter, fan_in_fan_out=True), base)
    a, b = adapter.values()
    torch.testing.assert_close(lora.exact_delta(CONV1D), (b @ a).T * 2)
    with pytest.raises(SourceError, match="Set fan_in_fan_out"):
        LoraSource("a", save_adapter(tmp_path / "m", adapter), base)


def test_fan_in_fan_out_leaves_plain_linear_layers_alone(base, tmp_path, save_adapter):
    lora = LoraSource("a", save_adapter(tmp_path / "l", factors(), fan_in_fan_out=True), base)
    a, b = factors().values()
    torch.testing.assert_close(lora.exact_delta(Q), b @ a * 2)


def test_a_convolution_adapter_composes_both_kernels(base, tmp_path, save_adapter):
    a, b = randn(2, 3, 2, 2), randn(5, 2, 1, 1)
    adapter = {"conv.lora_A.weight": a, "conv.lora_B.weight": b}
    lora = LoraSource("a", save_adapter(tmp_path / "l", adapter), base)
    expected = torch.einsum("or,rikl->oikl", b[:, :, 0, 0], a) * 2
    torch.testing.assert_close(lora.exact_delta(CONV), expected)


@pytest.mark.parametrize(
    "infix", ["", ".modules_to_save", ".modules_to_save.default", ".base_layer"]
)
def test_a_saved_module_replaces_the_bases_tensor(infix, base, tmp_path, save_adapter):
    norm = randn(4, seed=9).half()
    adapter = {**factors(), f"model.norm{infix}.weight": norm}
    path = save_adapter(tmp_path / "l", adapter, modules_to_save=["norm"])
    lora = LoraSource("a", path, base)
    assert torch.equal(lora.read(NORM), norm)
    assert torch.equal(lora.read_range(NORM, 1, 3), norm[1:3])
    assert lora.exact_delta(NORM) is None
    assert lora.header().tensors[NORM].dtype == "F16"
    assert lora.header().digests[NORM] != base.header().digests[NORM]


def test_a_trained_bias_replaces_the_bases(base, tmp_path, save_adapter):
    bias = Q.replace("weight", "bias")
    adapter = {**factors(), bias: torch.ones(6)}
    lora = LoraSource("a", save_adapter(tmp_path / "l", adapter, bias="all"), base)
    assert torch.equal(lora.read(bias), torch.ones(6))


def test_a_new_head_is_added_when_the_config_lists_it(base, tmp_path, save_adapter):
    adapter = {**factors(), "score.weight": torch.ones(3, 4)}
    path = save_adapter(tmp_path / "l", adapter, modules_to_save=["score"])
    assert torch.equal(LoraSource("a", path, base).read("score.weight"), torch.ones(3, 4))
    with pytest.raises(SourceError, match=r"score.weight matches no tensor"):
        LoraSource("a", save_adapter(tmp_path / "m", adapter), base)


def embedding_factors():
    return {
        "model.embed_tokens.lora_embedding_A": randn(2, 7),
        "model.embed_tokens.lora_embedding_B": randn(4, 2),
    }


def test_an_adapter_on_the_embedding_unties_the_head(base, tmp_path, save_adapter):
    assert base.tied == {HEAD: EMBED}
    lora = LoraSource("a", save_adapter(tmp_path / "l", embedding_factors()), base)
    header = lora.header()
    assert header.tied == {}
    assert header.tensors[HEAD].shape == (7, 4)
    assert torch.equal(lora.read(HEAD), base.read(EMBED))
    assert torch.equal(lora.read(EMBED), base.read(EMBED).float() + lora.exact_delta(EMBED))


@pytest.mark.parametrize("n_tokens", [7, 9])
def test_an_embeddings_own_base_layer_is_used_when_it_differs(
    n_tokens, base, tmp_path, save_adapter
):
    a, b = randn(2, n_tokens), randn(4, 2)
    own = base_tensors()[EMBED] if n_tokens == 7 else randn(9, 4)
    adapter = {
        "model.embed_tokens.lora_embedding_A": a,
        "model.embed_tokens.lora_embedding_B": b,
        "model.embed_tokens.base_layer.weight": own,
    }
    lora = LoraSource("a", save_adapter(tmp_path / "l", adapter), base)
    expected = own.float() + (b @ a).T * 2
    torch.testing.assert_close(lora.read(EMBED), expected)
    assert torch.equal(lora.read_range(EMBED, 3, 20), lora.read(EMBED).flatten()[3:20])
    assert lora.header().tensors[EMBED].shape == (n_tokens, 4)
    assert lora.header().tensors[EMBED].dtype == "F32"
    assert (lora.exact_delta(EMBED) is None) == (n_tokens == 9)


def test_an_adapter_on_the_head_unties_the_embedding(base, tmp_path, save_adapter):
    lora = LoraSource("a", save_adapter(tmp_path / "l", factors("lm_head", 7, 4)), base)
    assert lora.header().tied == {}
    assert torch.equal(lora.read(EMBED), base.read(EMBED))
    assert torch.equal(lora.read(HEAD), base.read(EMBED).float() + lora.exact_delta(HEAD))


def test_ensure_weight_tying_keeps_the_head_on_the_embedding(tmp_path, save_model, save_adapter):
    tensors = base_tensors()
    for extra in ({}, {HEAD: tensors[EMBED].clone()}):
        config = {**LLAMA, "tie_word_embeddings": True}
        folder = save_model(tmp_path / f"b{len(extra)}", {**tensors, **extra}, config)
        path = save_adapter(tmp_path / "l", embedding_factors(), ensure_weight_tying=True)
        lora = LoraSource("a", path, ModelFolder("base", folder))
        assert lora.header().tied == {HEAD: EMBED}
        assert HEAD not in lora.header().tensors
        assert torch.equal(lora.read(HEAD), lora.read(EMBED))
        assert torch.equal(lora.exact_delta(HEAD), lora.exact_delta(EMBED))
        assert torch.equal(lora.read_range(HEAD, 2, 9), lora.read(EMBED).flatten()[2:9])


def test_an_adapter_elsewhere_keeps_the_tying(base, tmp_path, save_adapter):
    lora = LoraSource("a", save_adapter(tmp_path / "l", factors()), base)
    assert lora.header().tied == {HEAD: EMBED}
    assert torch.equal(lora.read(HEAD), base.read(EMBED))


A_ONLY = {f"{MODULE}.lora_A.weight": randn(2, 4)}
HOSTILE = {
    "half_a_pair": (A_ONLY, "no partner factor"),
    "both_spellings": ({**factors(), **factors(infix=".default")}, "same factor"),
    "unknown_module": (factors("model.layers.9.q_proj"), "matches no tensor"),
    "wrong_input_width": (factors(n_in=5), "do not fit"),
    "wrong_output_width": (factors(out=5), "do not fit"),
    "ranks_differ": (
        {**A_ONLY, f"{MODULE}.lora_B.weight": randn(6, 3)},
        "do not fit",
    ),
    "factor_is_a_vector": (
        {f"{MODULE}.lora_A.weight": randn(4), f"{MODULE}.lora_B.weight": randn(6)},
        "do not fit",
    ),
    "rank_not_in_config": (factors(rank=3), "rank of .* is 2 in the config and 3"),
    "dora_vector": (
        {**factors(), f"{MODULE}.lora_magnitude_vector": randn(6)},
        "not a factor of plain LoRA",
    ),
    "factor_bias": ({**factors(), f"{MODULE}.lora_B.bias": randn(6)}, "not a factor of plain LoRA"),
    "other_adapter_name": (factors(infix=".mine"), "not a factor of plain LoRA"),
    "unknown_whole_tensor": ({**factors(), "model.extra.weight": randn(4)}, "matches no tensor"),
    "product_and_whole": ({**factors(), Q: randn(6, 4)}, "both change"),
    "base_layer_of_another_shape": (
        {
            "model.embed_tokens.lora_embedding_A": randn(2, 7),
            "model.embed_tokens.lora_embedding_B": randn(4, 2),
            "model.embed_tokens.base_layer.weight": randn(9, 4),
        },
        "do not fit",
    ),
    "whole_twice": (
        {NORM: randn(4), "model.norm.modules_to_save.weight": randn(4)},
        "both replace",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_an_adapter_that_does_not_fit_is_refused(case, base, tmp_path, save_adapter):
    adapter, message = HOSTILE[case]
    with pytest.raises(SourceError, match=message) as error:
        LoraSource("a", save_adapter(tmp_path / "l", adapter), base)
    assert str(tmp_path / "l") in str(error.value)


def test_a_tensor_without_the_peft_prefix_is_refused(base, tmp_path, save_adapter, save_model):
    path = save_adapter(tmp_path / "l", factors())
    save_model(path, factors(), weights="adapter_model.safetensors")
    with pytest.raises(SourceError, match=r"does not begin with base_model.model"):
        LoraSource("a", path, base)


def test_a_pickled_or_missing_adapter_is_refused(base, tmp_path, save_adapter):
    path = save_adapter(tmp_path / "l", factors())
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"has no adapter_model.safetensors"):
        LoraSource("a", path, base)
    (path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(SourceError, match="pickled weights can run code"):
        LoraSource("a", path, base)


def test_dora_is_refused(base, tmp_path, save_adapter):
    with pytest.raises(SourceError, match="use_dora is set"):
        LoraSource("a", save_adapter(tmp_path / "l", factors(), use_dora=True), base)


def test_a_factor_that_is_not_finite_is_refused(base, tmp_path, save_adapter):
    adapter = factors()
    adapter[f"{MODULE}.lora_B.weight"][0, 0] = math.inf
    lora = LoraSource("a", save_adapter(tmp_path / "l", adapter), base)
    with pytest.raises(SourceError, match=r"lora_B.weight holds inf"):
        lora.header()


def test_the_digest_changes_with_the_scale_only(base, tmp_path, save_adapter):
    paths = [
        save_adapter(tmp_path / f"l{i}", factors(), lora_alpha=a) for i, a in enumerate((4, 4, 5))
    ]
    one, same, other = (LoraSource("a", path, base) for path in paths)
    assert one.digest == same.digest != other.digest


def test_a_missing_tensor_is_named(base, tmp_path, save_adapter):
    lora = LoraSource("a", save_adapter(tmp_path / "l", factors()), base)
    for ask in (lora.read, lora.exact_delta, lambda name: lora.read_range(name, 0, 1)):
        with pytest.raises(SourceError, match=r"Did you mean 'model.norm.weight'"):
            ask("model.norms.weight")


def test_no_delta_is_claimed_for_a_merge_on_another_base(base, tmp_path, save_adapter):
    path = save_adapter(tmp_path / "l", factors())
    lora = LoraSource("a", path, base, knows_delta=False)
    assert lora.exact_delta(Q) is None
    assert torch.equal(lora.read(Q), LoraSource("a", path, base).read(Q))


def test_digests_can_be_kept_and_files_be_watched(base, tmp_path, save_adapter):
    path = save_adapter(tmp_path / "l", factors())
    lora, again = LoraSource("a", path, base), LoraSource("a", path, base)
    again.restore_fingerprint(lora.fingerprint())
    assert again.digest == lora.digest
    with pytest.raises(SourceError, match="Delete the kept digests"):
        again.restore_fingerprint({})
    names = [row[0] for row in lora.stat_signature()]
    assert names[-2:] == ["adapter_config.json", "adapter_model.safetensors"]
    assert json.loads(json.dumps(lora.stat_signature())) == again.stat_signature()


def test_the_base_name_is_read_from_the_config(tmp_path, save_adapter):
    path = save_adapter(tmp_path / "l", factors(), base_model_name_or_path="org/name")
    assert adapter_base_name(path) == "org/name"
    assert adapter_base_name(save_adapter(tmp_path / "m", factors())) == ""


PEFT_CASES = {
    "llama": {"target_modules": ["q_proj", "down_proj", "embed_tokens"], "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "k_proj"],
        "rank_pattern": {"layers.0.self_attn.k_proj": 3},
        "alpha_pattern": {"q_proj": 5},
    },
    "saved": {"target_modules": ["v_proj"], "modules_to_save": ["norm", "lm_head"]},
    "embedding": {"target_modules": ["embed_tokens"]},
    "gpt2": {"target_modules": ["c_attn", "c_proj", "wte"], "fan_in_fan_out": True},
}


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", PEFT_CASES)
def test_the_merged_weights_are_pefts(case, tmp_path):
    import peft
    import transformers

    torch.manual_seed(0)
    if case == "gpt2":
        gpt2 = transformers.GPT2Config(
            vocab_size=16, n_embd=8, n_layer=1, n_head=2, n_positions=4, tie_word_embeddings=False
        )
        model = transformers.GPT2LMHeadModel(gpt2)
    else:
        llama = transformers.LlamaConfig(
            vocab_size=16,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=False,
        )
        model = transformers.LlamaForCausalLM(llama)
    model.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, lora_alpha=6, init_lora_weights=False, **PEFT_CASES[case])
    adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "modules_to_save" in name:
            parameter.data.add_(1.0)
    adapted.save_pretrained(tmp_path / "l")
    source = LoraSource("a", tmp_path / "l", ModelFolder("base", tmp_path / "base"))
    for name, tensor in adapted.merge_and_unload().state_dict().items():
        torch.testing.assert_close(source.read(name), tensor)
