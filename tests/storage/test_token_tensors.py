import pytest

from evomerge.core.model_space import TensorSpec
from evomerge.storage.token_tensors import tied_names, token_embedding

LLAMA = "model.embed_tokens.weight"


def specs(*names):
    return {name: TensorSpec(name, "F32", (10, 4)) for name in names}


def never(one, other):
    raise AssertionError("content was compared")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((LLAMA, "model.norm.weight"), LLAMA),
        (("wte.weight", "wpe.weight"), "wte.weight"),
        (("gpt_neox.embed_in.weight",), "gpt_neox.embed_in.weight"),
        (
            (
                "bert.embeddings.word_embeddings.weight",
                "bert.embeddings.position_embeddings.weight",
            ),
            "bert.embeddings.word_embeddings.weight",
        ),
        (("shared.weight", "encoder.embed_tokens.weight"), "shared.weight"),
        (("encoder.embed_tokens.weight", "other.embed_tokens.weight"), None),
        (("vit.embeddings.patch_embeddings.projection.weight",), None),
    ],
)
def test_the_token_embedding_is_found_by_name(names, expected):
    assert token_embedding(specs(*names)) == expected


@pytest.mark.parametrize(
    ("names", "config", "architecture", "expected"),
    [
        ((LLAMA,), {"tie_word_embeddings": True}, "LlamaForCausalLM", {"lm_head.weight": LLAMA}),
        ((LLAMA,), {"tie_word_embeddings": True}, "", {"lm_head.weight": LLAMA}),
        ((LLAMA,), {}, "LlamaForCausalLM", {"lm_head.weight": LLAMA}),
        ((LLAMA,), {"tie_word_embeddings": False}, "LlamaForCausalLM", {}),
        ((LLAMA,), {}, "LlamaModel", {}),
        ((LLAMA,), {}, "", {}),
        ((LLAMA,), {"tie_word_embeddings": True}, "LlamaForSequenceClassification", {}),
        ((LLAMA, "lm_head.weight"), {}, "LlamaForCausalLM", {}),
        (
            (LLAMA,),
            {"text_config": {"tie_word_embeddings": True}},
            "Gemma3ForConditionalGeneration",
            {"lm_head.weight": LLAMA},
        ),
        (("wte.weight",), {}, "GPT2LMHeadModel", {"lm_head.weight": "wte.weight"}),
        (
            ("gpt_neox.embed_in.weight",),
            {"tie_word_embeddings": True},
            "GPTNeoXForCausalLM",
            {"embed_out.weight": "gpt_neox.embed_in.weight"},
        ),
        (
            ("bert.embeddings.word_embeddings.weight",),
            {},
            "BertForMaskedLM",
            {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"},
        ),
        (
            ("language_model.model.embed_tokens.weight",),
            {"tie_word_embeddings": True},
            "LlavaForConditionalGeneration",
            {"language_model.lm_head.weight": "language_model.model.embed_tokens.weight"},
        ),
        (("vit.layernorm.weight",), {"tie_word_embeddings": True}, "ViTModel", {}),
    ],
)
def test_heads_are_tied_by_config_and_family(names, config, architecture, expected):
    assert tied_names(specs(*names), config, architecture, never) == expected


@pytest.mark.parametrize("is_same", [True, False])
def test_a_stored_head_is_tied_only_when_its_content_is_the_embeddings(is_same):
    tied = tied_names(
        specs(LLAMA, "lm_head.weight"),
        {"tie_word_embeddings": True},
        "LlamaForCausalLM",
        lambda one, other: is_same,
    )
    assert tied == ({"lm_head.weight": LLAMA} if is_same else {})
