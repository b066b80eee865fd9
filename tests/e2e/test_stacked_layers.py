"""Frankenmerges: what is exported is the stack, and transformers runs it like any model."""

import copy
import json

import pytest
import torch
import transformers
import yaml

from evomerge.core.layer_plan import LayerPlan
from evomerge.storage.model_folder import ModelFolder
from tests.e2e import real_project as rp
from tests.e2e.test_model_families import GPT2
from tests.evaluation import tiny_models

FOUR = rp.SMALL | {"num_hidden_layers": 4}
FAMILIES = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", FOUR),
    "llama-tied": ("LlamaForCausalLM", "LlamaConfig", FOUR | {"tie_word_embeddings": True}),
    "qwen2": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        FOUR | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    ),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", FOUR | {"sliding_window": 4}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2 | {"n_layer": 4}),
}
ENDS = ("o_proj.", "down_proj.", "attn.c_proj.", "mlp.c_proj.")
ORDER = [("a", 0), ("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3)]


def loaded(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def blocks_of(model):
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def final_norm(model):
    return model.transformer.ln_f if hasattr(model, "transformer") else model.model.norm


def by_hand(folders, order, scaled=()):
    """Return the stack of loaded models: a copy of the first one with its blocks replaced."""
    models = {name: loaded(folder) for name, folder in folders.items()}
    stack = copy.deepcopy(models[order[0][0]])
    blocks = torch.nn.ModuleList()
    kinds = []
    for index, (name, layer) in enumerate(order):
        block = copy.deepcopy(blocks_of(models[name])[layer])
        for part in block.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = index
        for key, value in block.named_parameters():
            if index in scaled and any(end in key for end in ENDS):
                value.data *= 0.5
        blocks.append(block)
        kinds.append((getattr(models[name].config, "layer_types", None) or [None] * 9)[layer])
    if hasattr(stack, "transformer"):
        stack.transformer.h, stack.config.n_layer = blocks, len(order)
    else:
        stack.model.layers, stack.config.num_hidden_layers = blocks, len(order)
    if kinds[0] is not None:
        stack.config.layer_types = kinds
    last = models[order[-1][0]]
    final_norm(stack).load_state_dict(final_norm(last).state_dict())
    if not stack.config.tie_word_embeddings:
        stack.lm_head.load_state_dict(last.lm_head.state_dict())
    return stack.eval()


def logits(model, **options):
    with torch.inference_mode():
        return model(**rp.batch_for("AutoModelForCausalLM"), **options).logits


def merge(tmp_path, body, name="out"):
    file = tmp_path / f"{name}.yml"
    file.write_text(yaml.safe_dump(body))
    out = tmp_path / name
    rp.cli("merge", file, "--out", out)
    return out


def family(tmp_path, name="llama"):
    model_class, config_class, settings = FAMILIES[name]
    model = tiny_models.make(model_class, config_class, settings)
    rp.save_family(tmp_path, model, experts=("a", "b"))
    return {source: tmp_path / source for source in ("base", "a", "b")}


def passthrough(tail=None):
    source = {"model": "b", "layer_range": [1, 4]}
    return {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "a", "layer_range": [0, 3]}]},
            {"sources": [source | ({"parameters": tail} if tail else {})]},
        ],
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stack_is_exported_loaded_and_generates_with_its_cache(name, tmp_path):
    folders = family(tmp_path, name)
    out = merge(tmp_path, passthrough())
    wanted = by_hand(folders, ORDER)
    assert torch.equal(rp.logits_of(out), logits(wanted, use_cache=False).float())
    model = loaded(out)
    assert len(blocks_of(model)) == 6
    asked = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    ids = rp.batch_for("AutoModelForCausalLM")["input_ids"]
    mask = torch.ones_like(ids)
    with_cache = model.generate(ids, attention_mask=mask, use_cache=True, **asked)
    assert torch.equal(
        with_cache, model.generate(ids, attention_mask=mask, use_cache=False, **asked)
    )
    with torch.inference_mode():
        whole = model(with_cache, use_cache=False).logits
        first = model(with_cache[:, :5], use_cache=True)
        rest = model(with_cache[:, 5:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(rest, whole[:, 5:], rtol=2e-5, atol=2e-5)


def test_a_recipe_builds_the_stack_again(tmp_path):
    folders = family(tmp_path)
    out = merge(tmp_path, passthrough({"scale": [{"filter": "o_proj", "value": 0.5},
                                                 {"filter": "down_proj", "value": 0.5},
                                                 {"value": 1.0}]}))  # fmt: skip
    assert torch.equal(
        rp.logits_of(out), logits(by_hand(folders, ORDER, scaled={3, 4, 5}), use_cache=False)
    )
    record = json.loads((out / "recipe.json").read_text())
    assert [source["id"] for source in record["sources"]] == ["a", "b"]
    assert LayerPlan.from_json(record["stacks"][0]["plan"]).to_json()["layers"][3] == ["b", 1]
    card = (out / "README.md").read_text()
    assert "| stack | 6 layers: a 0–2, b 1–3 |" in card
    assert "mergekit has no config for this recipe" in card
    rp.cli("merge", out / "recipe.json", "--out", tmp_path / "again")
    first, again = rp.tensors_of(out), rp.tensors_of(tmp_path / "again")
    assert set(first) == set(again)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == json.loads(
        (out / "config.json").read_text()
    )
    # A recipe may scale the slots themselves, as a search over stacks does.
    record["recipe"]["params"] = {"scale": [1.0]}
    record["recipe"]["grouping"] = "global"
    record["stacks"][0]["plan"]["layers"][3:] = [["b", 1, 0.5], ["b", 2, 0.5], ["b", 3, 0.5]]
    (tmp_path / "slots.json").write_text(json.dumps(record))
    said = rp.cli("merge", tmp_path / "slots.json", "--out", tmp_path / "slots", expect=3)
    assert "stack: is not the stack this recipe was made with (digest " in said.err
    record["stacks"][0]["digest"] = said.err.split("(digest ")[1].split(",")[0]
    (tmp_path / "slots.json").write_text(json.dumps(record))
    rp.cli("merge", tmp_path / "slots.json", "--out", tmp_path / "slots")
    slots = rp.tensors_of(tmp_path / "slots")
    assert all(torch.equal(tensor, slots[name]) for name, tensor in first.items())
    said = rp.cli("merge", out / "recipe.json", "--adapter", "--out", tmp_path / "no", expect=2)
    assert "a stack of layers is no adapter" in said.err


def test_stacks_of_several_models_are_merged_by_any_method(tmp_path):
    folders = family(tmp_path)
    rows = [(0, 0, 0), (1, 1, 1), (2, 2, 1), (3, 3, 2)]
    body = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "slices": [
            {
                "sources": [
                    {"model": "base", "layer_range": [start, start + 2]},
                    {"model": "a", "layer_range": [start, start + 2], "parameters": {"weight": 0.5}},
                    {"model": "b", "layer_range": [b, b + 2], "parameters": {"weight": 0.25}},
                ]
            }
            for start, b in ((0, 0), (2, 1))
        ],
    }  # fmt: skip
    out = merge(tmp_path, body)
    sources = {name: ModelFolder(name, folder) for name, folder in folders.items()}
    written = rp.tensors_of(out)
    for name, tensor in written.items():
        parts = name.split(".layers.")
        base, a, b = (sources[source].read(name).double() for source in ("base", "a", "b"))
        if len(parts) == 2:
            layer, inner = parts[1].split(".", 1)
            b = sources["b"].read(f"{parts[0]}.layers.{rows[int(layer)][2]}.{inner}").double()
        expected = base + 0.5 * (a - base) + 0.25 * (b - base)
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-6, msg=name)
    rp.cli("merge", out / "recipe.json", "--out", tmp_path / "again")
    again = rp.tensors_of(tmp_path / "again")
    assert all(torch.equal(tensor, again[name]) for name, tensor in written.items())
    rp.logits_of(out)


def test_slices_of_whole_models_are_the_models(tmp_path):
    family(tmp_path)
    entries = [{"model": name, "layer_range": [0, 4]} for name in ("a", "b")]
    common = {"merge_method": "linear", "parameters": {"weight": 0.5}}
    sliced = merge(tmp_path, common | {"slices": [{"sources": entries}]})
    models = [{"model": name} for name in ("a", "b")]
    plain = merge(tmp_path, common | {"models": models}, "plain")
    one, other = (json.loads((f / "recipe.json").read_text()) for f in (sliced, plain))
    assert one["weights_digest"] == other["weights_digest"]
    assert "stacks" not in one


def test_a_stack_may_have_fewer_layers_and_the_config_of_another_model(tmp_path):
    folders = family(tmp_path)
    body = {
        "merge_method": "passthrough",
        "base_model": "base",
        "slices": [{"sources": [{"model": "a", "layer_range": [1, 3]}]}],
        "dtype": "bfloat16",
    }
    out = merge(tmp_path, body)
    record = json.loads((out / "recipe.json").read_text())
    assert [source["id"] for source in record["sources"]] == ["base", "a"]
    config = json.loads((out / "config.json").read_text())
    assert (config["num_hidden_layers"], config["dtype"]) == (2, "bfloat16")
    rp.logits_of(out)
    a = ModelFolder("a", folders["a"])
    for name, tensor in rp.tensors_of(out).items():
        old = name.replace("layers.1.", "layers.2.").replace("layers.0.", "layers.1.")
        assert torch.equal(tensor, a.read(old).bfloat16()), name


def test_a_head_that_only_one_end_stores_is_stored(tmp_path):
    tied = tiny_models.make(*FAMILIES["llama-tied"])
    own = tiny_models.make(*FAMILIES["llama"])
    rp.save(tied, tmp_path / "a")
    rp.save(rp.perturbed(own, 1), tmp_path / "b")
    out = merge(tmp_path, passthrough())
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    written = rp.tensors_of(out)
    b = ModelFolder("b", tmp_path / "b")
    assert torch.equal(written["lm_head.weight"], b.read("lm_head.weight"))
    rp.logits_of(out)
