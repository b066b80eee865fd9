"""Adapters written from merges, opened again as sources and, where it is installed, by PEFT."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from evomerge.core.model_space import align
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError
from evomerge.export import CardFacts, ParentModel, export_adapter, export_candidate
from evomerge.merging.materialize import materialize
from evomerge.storage.lora_source import LoraSource
from evomerge.storage.model_folder import ModelFolder

IDS = torch.tensor([[1, 5, 2, 9, 3]])
needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="peft is not installed"
)


def model_of(family, **changes):
    torch.manual_seed(0)
    if family == "gpt2":
        settings = {"vocab_size": 16, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 8,
                    "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings | changes))
    settings = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 12,
                "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
    if family == "qwen2":
        return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**settings | changes))
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings | changes))


def save_base(folder, family="llama", dtype=torch.float32, **changes):
    model_of(family, **changes).to(dtype).save_pretrained(folder)
    return folder


def save_expert(folder, base, seed, keep=lambda name: True, scale=0.05):
    """Write a full fine-tune: noise on the tensors whose name `keep` accepts."""
    noise = torch.Generator().manual_seed(seed)
    tensors = load_file(base / "model.safetensors")
    for name, tensor in tensors.items():
        if keep(name):
            change = scale * torch.randn(tensor.shape, generator=noise)
            tensors[name] = (tensor.float() + change).to(tensor.dtype)
    folder.mkdir()
    (folder / "config.json").write_text((base / "config.json").read_text())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def save_lora(folder, base, seed, *, rank=2, targets=("q_proj", "down_proj"), **config):
    """Write an adapter by hand; embeddings and Conv1D as PEFT stores them."""
    noise = torch.Generator().manual_seed(seed)
    factors = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        module, _, leaf = name.rpartition(".")
        if leaf != "weight" or not module.endswith(targets):
            continue
        is_embedding = module.endswith(("embed_tokens", "wte"))
        turned = is_embedding or config.get("fan_in_fan_out")
        n_out, n_in = tensor.shape[::-1] if turned else tensor.shape
        stem, end = ("lora_embedding_", "") if is_embedding else ("lora_", ".weight")
        factors[f"base_model.model.{module}.{stem}A{end}"] = torch.randn(
            rank, n_in, generator=noise
        )
        factors[f"base_model.model.{module}.{stem}B{end}"] = 0.1 * torch.randn(
            n_out, rank, generator=noise
        )
    assert factors
    folder.mkdir()
    save_file(factors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    body = {"peft_type": "LORA", "r": rank, "lora_alpha": 3, "target_modules": list(targets)}
    (folder / "adapter_config.json").write_text(json.dumps(body | config))
    return folder


class Merge:
    """A base and experts, opened and aligned, and a recipe over them."""

    def __init__(self, base, *experts, operator="task_arithmetic", settings=None, **params):
        self.folder = base
        opened = ModelFolder("base", base)
        self.sources = {"base": opened}
        for path in experts:
            is_lora = (path / "adapter_config.json").exists()
            self.sources[path.name] = (
                LoraSource(path.name, path, opened) if is_lora else ModelFolder(path.name, path)
            )
        self.space = align([s.header() for s in self.sources.values()], has_base=True)
        if operator == "task_arithmetic":
            params.setdefault("lambda_", 1.0)
        rows = {
            key: np.array([value] if isinstance(value, tuple) else value, dtype=np.float64)
            if isinstance(value, tuple)
            else np.array([float(value)])
            for key, value in params.items()
        }
        self.recipe = Recipe(
            operator, self.space.sources, rows, "global", None, dict(settings or {})
        )
        self.parents = tuple(
            ParentModel(id=key, model=str(base), lora=None if key == "base" else str(path))
            for key, path in zip(self.sources, (base, *experts), strict=True)
        )

    def export(self, out, *, rank=None, write=export_adapter, **changes):
        keywords = {} if write is export_candidate else {"rank": rank}
        keywords |= {
            "recipe": self.recipe,
            "space": self.space,
            "sources": self.sources,
            "derived": None,
            "donor": self.folder,
            "card": CardFacts(title="A merge", parents=self.parents),
        }
        return write(out, **keywords | changes)

    def tensors(self, dtype=torch.float32):
        return dict(materialize(self.recipe, self.space, self.sources, out_dtype=dtype))

    def again(self, out):
        """Return the tensors of the written adapter on the base, float32."""
        source = LoraSource("again", out, ModelFolder("base", self.folder))
        names = {tensor.spec.name for tensor in self.space.tensors}
        return {name: source.read(name).float() for name in names}


def assert_reproduces(merge, out, tolerance=1e-6):
    expected, got = merge.tensors(), merge.again(out)
    assert set(got) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=tolerance, atol=tolerance, msg=name)


@pytest.fixture
def base(tmp_path):
    return save_base(tmp_path / "base", tie_word_embeddings=False)


@pytest.fixture
def adapters(tmp_path, base):
    return [
        save_lora(tmp_path / "x", base, 1),
        save_lora(tmp_path / "y", base, 2, rank=3, targets=("q_proj", "v_proj", "embed_tokens")),
    ]


@pytest.mark.parametrize(
    ("operator", "params", "settings"),
    [
        ("task_arithmetic", {"weights": (0.7, -0.4), "lambda_": 1.2}, {}),
        ("linear", {"weights": (0.2, 0.5, 0.3)}, {"normalize": True}),
        ("evo_merging", {"alpha": (0.5, 0.8), "beta": (0.9, -0.3)}, {}),
    ],
)
def test_linear_merges_of_adapters_come_out_exactly(
    operator, params, settings, tmp_path, base, adapters
):
    merge = Merge(base, *adapters, operator=operator, settings=settings, **params)
    result = merge.export(tmp_path / "out")
    facts = result.adapter
    assert facts.relative_error == 0.0
    assert set(facts.errors.values()) == {0.0}
    assert facts.rank == 5
    assert not facts.whole
    assert_reproduces(merge, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert len(config["target_modules"]) == 2 + 2 + 2 + 1
    # q_proj has both adapters, the others one.
    assert {config["r"], *config["rank_pattern"].values()} == {2, 3, 5}
    full = merge.export(tmp_path / "full", write=export_candidate)
    assert result.weights_digest == full.weights_digest


def test_a_rank_cuts_an_exact_adapter_and_the_error_is_told(tmp_path, base, adapters):
    merge = Merge(base, *adapters, weights=(0.7, 0.4))
    facts = merge.export(tmp_path / "out", rank=4).adapter
    assert facts.rank == 4
    expected, got = merge.tensors(), merge.again(tmp_path / "out")
    stored = load_file(base / "model.safetensors")
    squares = []
    for name, error in facts.errors.items():
        change = (expected[name] - stored[name]).double()
        gap = (got[name] - expected[name]).double().norm()
        assert error == pytest.approx(float(gap / change.norm()), abs=1e-5)
        assert (error > 0.0) == ("q_proj" in name)
        squares.append((float(gap) ** 2, float(change.norm()) ** 2))
    overall = np.sqrt(sum(a for a, _ in squares) / sum(b for _, b in squares))
    assert facts.relative_error == pytest.approx(overall, abs=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{facts.relative_error:.3g}" in card
    assert "base_model_relation: adapter" in card
    assert "--adapter --rank 4" in card
    record = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert record["adapter"]["errors"] == facts.errors


def test_a_rank_above_that_of_the_adapters_changes_nothing(tmp_path, base, adapters):
    merge = Merge(base, *adapters, weights=(0.7, 0.4))
    merge.export(tmp_path / "exact")
    merge.export(tmp_path / "wide", rank=64)
    one, two = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("exact", "wide"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_other_merges_need_a_rank(tmp_path, base, adapters):
    merge = Merge(base, *adapters, operator="ties", weights=(1.0, 1.0), density=0.5, lambda_=1.0)
    with pytest.raises(ConfigError, match=r"weight: what this recipe.*--rank R"):
        merge.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    facts = merge.export(tmp_path / "out", rank=8).adapter
    assert facts.relative_error < 1e-6, "rank 8 is full for 8 columns"
    assert_reproduces(merge, tmp_path / "out", tolerance=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_full_fine_tunes_are_extracted_and_what_lora_cannot_hold_is_stored_whole(family, tmp_path):
    base = save_base(tmp_path / "base", family, tie_word_embeddings=False)
    merge = Merge(base, save_expert(tmp_path / "x", base, 1), weights=(0.8,))
    facts = merge.export(tmp_path / "out", rank=16).adapter
    assert facts.relative_error < 1e-6
    assert facts.whole, "norms"
    assert_reproduces(merge, tmp_path / "out", tolerance=1e-5)
    cut = merge.export(tmp_path / "cut", rank=2).adapter
    assert 0.1 < cut.relative_error < 1.0
    assert cut.n_bytes < facts.n_bytes


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_tied_embeddings_are_stored_whole_on_both_sides(family, tmp_path):
    base = save_base(tmp_path / "base", family, tie_word_embeddings=True)
    merge = Merge(base, save_expert(tmp_path / "x", base, 1), weights=(0.8,))
    facts = merge.export(tmp_path / "out", rank=16).adapter
    assert {name.rpartition(".")[2] for name in facts.whole} >= {"lm_head"}
    assert_reproduces(merge, tmp_path / "out", tolerance=1e-5)


def test_conv1d_adapters_keep_their_orientation(tmp_path):
    base = save_base(tmp_path / "base", "gpt2", tie_word_embeddings=False)
    targets = ("c_attn", "c_proj")
    loras = [
        save_lora(tmp_path / name, base, seed, targets=targets, fan_in_fan_out=True)
        for seed, name in enumerate(("x", "y"))
    ]
    merge = Merge(base, *loras, weights=(1.0, -0.5))
    assert merge.export(tmp_path / "out").adapter.relative_error == 0.0
    assert_reproduces(merge, tmp_path / "out")


def test_a_bfloat16_base_keeps_its_dtype_in_what_is_stored_whole(tmp_path):
    base = save_base(tmp_path / "base", "qwen2", torch.bfloat16)
    merge = Merge(base, save_expert(tmp_path / "x", base, 1), weights=(0.8,))
    result = merge.export(tmp_path / "out", rank=16)
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    dtypes = {tensor.dtype for name, tensor in stored.items() if "lora_" not in name}
    assert dtypes == {torch.bfloat16}
    full = merge.export(tmp_path / "full", write=export_candidate)
    assert result.weights_digest == full.weights_digest


def test_a_merge_that_is_its_base_is_no_adapter(tmp_path, base, adapters):
    with pytest.raises(ConfigError, match="equals its base"):
        Merge(base, *adapters, weights=(0.0, 0.0)).export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_a_plain_base_can_have_an_adapter(tmp_path, base, adapters):
    merge = Merge(base, *adapters, weights=(1.0, 1.0))
    with pytest.raises(ConfigError, match="this merge has none"):
        merge.export(tmp_path / "out", space=replace(merge.space, has_base=False))
    merge.parents = (replace(merge.parents[0], lora="adapter"), *merge.parents[1:])
    with pytest.raises(ConfigError, match="adapter of its own"):
        merge.export(tmp_path / "out")


def test_an_occupied_folder_is_left_alone(tmp_path, base, adapters):
    with pytest.raises(ConfigError, match="already exists"):
        Merge(base, *adapters, weights=(1.0, 1.0)).export(base)


def logits(model):
    with torch.inference_mode():
        return model.eval()(input_ids=IDS).logits


@needs_peft
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_peft_computes_the_merge(family, is_tied, tmp_path):
    import peft

    base = save_base(tmp_path / "base", family, tie_word_embeddings=is_tied)
    lora = {"gpt2": {"targets": ("c_attn",), "fan_in_fan_out": True}}.get(family, {})
    experts = [save_lora(tmp_path / "x", base, 1, **lora), save_expert(tmp_path / "y", base, 2)]
    for name, chosen, rank in (("exact", experts[:1], None), ("all", experts, 16)):
        merge = Merge(base, *chosen, weights=(0.8, 0.6)[: len(chosen)])
        merge.export(tmp_path / f"full-{name}", write=export_candidate)
        merge.export(tmp_path / f"out-{name}", rank=rank)
        expected = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / f"full-{name}")
        plain = transformers.AutoModelForCausalLM.from_pretrained(base)
        adapted = peft.PeftModel.from_pretrained(plain, tmp_path / f"out-{name}")
        torch.testing.assert_close(logits(adapted), logits(expected), rtol=1e-4, atol=1e-4)
        unloaded = adapted.merge_and_unload()
        torch.testing.assert_close(logits(unloaded), logits(expected), rtol=1e-4, atol=1e-4)


def test_nothing_is_left_behind(tmp_path, base, adapters):
    Merge(base, *adapters, weights=(1.0, 1.0)).export(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
        "recipe.json",
    ]
    assert not list(Path(tmp_path).glob("*.partial*"))
