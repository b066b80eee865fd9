"""Every family of models: what is scored is what is exported is what the formula says."""

import json

import numpy as np
import pytest
import torch

from tests.e2e import real_project as rp
from tests.evaluation import tiny_models
from tests.evaluation.tiny_models import CAUSAL, IMAGE, SEQUENCE

GPT2 = {"vocab_size": tiny_models.VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2,
        "n_positions": 64, "bos_token_id": 257, "eos_token_id": 257}  # fmt: skip
ENCODER = {
    key: value
    for key, value in rp.SMALL.items()
    if key not in ("num_key_value_heads", "head_dim", "bos_token_id", "eos_token_id")
} | {"num_labels": 3}
DISTILBERT = {"vocab_size": tiny_models.VOCABULARY, "dim": 16, "hidden_dim": 24, "n_layers": 2,
              "n_heads": 2, "max_position_embeddings": 64, "num_labels": 3}  # fmt: skip
VIT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
       "num_attention_heads": 2, "image_size": 8, "patch_size": 4, "num_channels": 1,
       "num_labels": 3}  # fmt: skip

FAMILIES = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", rp.SMALL, CAUSAL),
    "llama-tied": (
        "LlamaForCausalLM",
        "LlamaConfig",
        rp.SMALL | {"tie_word_embeddings": True},
        CAUSAL,
    ),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", rp.SMALL, CAUSAL),
    "mistral": ("MistralForCausalLM", "MistralConfig", rp.SMALL, CAUSAL),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", rp.SMALL, CAUSAL),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2, CAUSAL),
    "bert": ("BertForSequenceClassification", "BertConfig", ENCODER, SEQUENCE),
    "distilbert": ("DistilBertForSequenceClassification", "DistilBertConfig", DISTILBERT, SEQUENCE),
    "vit": ("ViTForImageClassification", "ViTConfig", VIT, IMAGE),
}


def task_for(auto_class, folder):
    if auto_class == CAUSAL:
        return rp.text_task(folder)
    evaluator = {"name": "classification", "metric": "probability"}
    if auto_class == IMAGE:
        noise = np.random.default_rng(0)
        pixels = noise.standard_normal((6, 1, 8, 8)).astype(np.float32)
        np.savez(folder / "images.npz", pixel_values=pixels, labels=np.arange(6) % 3)
        return {"name": "images", "evaluator": evaluator | {"examples": str(folder / "images.npz")}}
    rows = [{"text": text, "label": i % 3} for i, text in enumerate(rp.TEXTS)]
    path = rp.write_rows(folder / "labels.jsonl", rows)
    return {"name": "labels", "evaluator": evaluator | {"examples": str(path)}}


def check_against_formula(found, tmp_path, work, **options):
    sources = [tmp_path / name for name in ("base", "x", "y")]
    merged = rp.dense_merge(sources, rp.task_vectors(found))
    work.mkdir()
    rp.assert_same_model(found.folder, merged, sources[0], work, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_search_over_each_family_exports_what_the_formula_says(family, tmp_path):
    model_class, config_class, settings, auto_class = FAMILIES[family]
    model = tiny_models.make(model_class, config_class, settings)
    rp.save_family(tmp_path, model, tokenizer=auto_class != IMAGE)
    # The formulas are those of sums of task vectors, which Model Stock and TIES are not.
    founders = {"founders": "parents"}
    body = rp.config(tmp_path, [task_for(auto_class, tmp_path)])
    body["search"] = body.get("search", {}) | founders
    run, facts = rp.search(tmp_path / "work", body)
    assert facts["left_out"] == {}
    assert facts["copied"] == {}
    for pick in ("knee", rp.searched_candidate(run, "task_arithmetic")):
        found = rp.export(tmp_path / "work", run, facts, pick)
        name = pick.replace(":", "-")
        check_against_formula(found, tmp_path, tmp_path / name, auto_class=auto_class)


def small_floats(tmp_path, dtype, **options):
    """Search over a Llama in a 16-bit dtype; return the exports of a searched candidate."""
    rp.save_family(tmp_path, rp.llama(), dtype=dtype, **options)
    body = rp.config(tmp_path, [rp.text_task(tmp_path)])
    run, facts = rp.search(tmp_path / "work", body)
    pick = rp.searched_candidate(run, "task_arithmetic")
    return rp.export(tmp_path / "work", run, facts, pick)


def test_a_sharded_bf16_model_stays_bf16(tmp_path):
    found = small_floats(tmp_path, torch.bfloat16, max_shard_size="8KB")
    assert len(list((tmp_path / "base").glob("model-*.safetensors"))) > 2
    assert json.loads((found.folder / "config.json").read_text())["dtype"] == "bfloat16"
    # float64 and float32 round to the same bf16 number but for ties.
    check_against_formula(found, tmp_path, tmp_path / "check", tolerance=2**-7)


def test_an_fp16_model_stays_fp16(tmp_path):
    found = small_floats(tmp_path, torch.float16)
    assert json.loads((found.folder / "config.json").read_text())["dtype"] == "float16"
    check_against_formula(found, tmp_path, tmp_path / "check", tolerance=2**-10)


@pytest.mark.parametrize(
    ("base", "expert"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)]
)
def test_experts_of_another_dtype_are_merged_into_the_dtype_of_the_base(base, expert, tmp_path):
    found = small_floats(tmp_path, base, expert_dtype=expert)
    tolerance = 2**-7 if base == torch.bfloat16 else 2e-5
    check_against_formula(found, tmp_path, tmp_path / "check", tolerance=tolerance)


@pytest.mark.parametrize("said", ["float32", "float16", None])
def test_a_config_that_misstates_the_dtype_does_not_part_scores_from_the_export(said, tmp_path):
    rp.save_family(tmp_path, rp.llama(), dtype=torch.bfloat16)
    file = tmp_path / "base" / "config.json"
    settings = json.loads(file.read_text())
    assert settings.pop("dtype") == "bfloat16"
    file.write_text(json.dumps(settings | ({} if said is None else {"dtype": said})))
    body = rp.config(tmp_path, [rp.text_task(tmp_path)])
    found = rp.search_and_export(tmp_path / "work", body)  # `--verify` compares every score
    assert json.loads((found.folder / "config.json").read_text())["dtype"] == "bfloat16"
