"""LoRA adapters, one head per task, and tokenizers that differ, through the command line."""

import json
import warnings

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from tests.e2e import real_project as rp
from tests.evaluation import tiny_models
from tests.evaluation.tiny_models import SEQUENCE, byte_tokenizer

# ----------------------------------------------------------------------------------- LoRA

TARGETS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


def save_adapter(folder, base, *, seed, rank=2, alpha=6.0, rslora=False, targets=None, **config):
    """Write an adapter as PEFT does; return {tensor name of the base: scale * B @ A}."""
    stored = rp.tensors_of(base)
    noise = torch.Generator().manual_seed(seed)
    scale = alpha / rank**0.5 if rslora else alpha / rank
    factors, deltas = {}, {}
    for name, tensor in stored.items():
        module = name.removesuffix(".weight")
        if not module.endswith(tuple(targets or TARGETS)):
            continue
        is_conv1d = bool(config.get("fan_in_fan_out"))
        n_out, n_in = tensor.shape[::-1] if is_conv1d else tensor.shape
        a = torch.randn(rank, n_in, generator=noise) * 0.2
        b = torch.randn(n_out, rank, generator=noise) * 0.2
        factors[f"base_model.model.{module}.lora_A.weight"] = a
        factors[f"base_model.model.{module}.lora_B.weight"] = b
        delta = scale * (b.double() @ a.double())
        deltas[name] = delta.T if is_conv1d else delta
    assert deltas
    folder.mkdir()
    save_file(factors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    body = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": rslora,
        "target_modules": [target.rpartition(".")[2] for target in targets or TARGETS],
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(body | config))
    return deltas


def lora_merge(found, base, deltas):
    """Return base + sum of weights * deltas, for task arithmetic or a linear recipe in one group."""
    weights = found.param("weights")
    assert len(weights) == 1
    scales = weights[0]
    if found.recipe["operator"] == "linear":
        total = 1.0 if found.recipe["settings"]["normalize"] is False else scales.sum()
        assert scales.sum() / total == pytest.approx(1.0)
        scales = scales[1:] / total
    else:
        scales = scales * found.param("lambda_")[0]
    merged = {}
    for name, tensor in rp.tensors_of(base).items():
        changes = [w * d[name] for w, d in zip(scales, deltas, strict=True) if name in d]
        merged[name] = (tensor.double() + sum(changes)).to(tensor.dtype) if changes else tensor
    return merged


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["task_arithmetic", "linear"])
def test_adapters_are_merged_as_exact_products(method, dtype, tmp_path):
    base = rp.save(rp.llama().to(dtype), tmp_path / "base")
    deltas = [
        save_adapter(tmp_path / "x", base, seed=1),
        save_adapter(tmp_path / "y", base, seed=2, rank=3, rslora=True),
    ]
    body = rp.config(
        tmp_path,
        [rp.text_task(tmp_path)],
        models=[
            {"name": "x", "model": str(base), "lora": str(tmp_path / "x")},
            str(tmp_path / "y"),
        ],
        merge={"name": method},
    )
    run, facts = rp.search(tmp_path / "work", body)
    assert facts["merged_tensors"] == 6
    found = rp.export(tmp_path / "work", run, facts, rp.searched_candidate(run, method))
    merged = lora_merge(found, base, deltas)
    tolerance = 2**-7 if dtype == torch.bfloat16 else 2e-5
    rp.assert_same_model(found.folder, merged, base, tmp_path, tolerance=tolerance)
    again = rp.cli(
        "merge", found.folder / "recipe.json", "--out", tmp_path / "again", "--json"
    ).json
    assert again["weights_digest"] == found.row["weights_digest"]


def test_an_adapter_on_a_conv1d_model_and_a_full_expert_merge_together(tmp_path):
    settings = tiny_models.GPT2 | {"n_embd": 16, "n_head": 2}
    model = tiny_models.make("GPT2LMHeadModel", "GPT2Config", settings)
    base = rp.save(model, tmp_path / "base")
    rp.save(rp.perturbed(model, 5), tmp_path / "y")
    deltas = save_adapter(
        tmp_path / "x", base, seed=1, targets=("attn.c_attn", "mlp.c_proj"), fan_in_fan_out=True
    )
    rest = {
        n: t.double() - rp.tensors_of(base)[n] for n, t in rp.tensors_of(tmp_path / "y").items()
    }
    body = rp.config(tmp_path, [rp.text_task(tmp_path)], merge={"name": "task_arithmetic"})
    run, facts = rp.search(tmp_path / "work", body)
    found = rp.export(tmp_path / "work", run, facts, rp.searched_candidate(run, "task_arithmetic"))
    rp.assert_same_model(found.folder, lora_merge(found, base, [deltas, rest]), base, tmp_path)


@pytest.mark.parametrize("method", ["ties", "slerp", "dare_ties", "m2n2"])
def test_other_methods_take_adapters(method, tmp_path):
    base = rp.save(rp.llama(tie_word_embeddings=True), tmp_path / "base")
    for seed, name in enumerate(("x", "y")):
        save_adapter(tmp_path / name, base, seed=seed)
    merge = {"name": method, **({"t": "search"} if method == "slerp" else {})}
    changes = {"merge": merge}
    if method == "m2n2":
        changes = {
            "algorithm": {"name": "m2n2", "population_size": 4},
            "merge": {"name": "linear", "normalize": False},
        }
    found = rp.search_and_export(
        tmp_path / "work", rp.config(tmp_path, [rp.text_task(tmp_path)], **changes)
    )
    rp.logits_of(found.folder)


def test_an_adapter_without_a_base_says_what_to_write(tmp_path):
    base = rp.save(rp.llama(), tmp_path / "base")
    save_adapter(tmp_path / "x", base, seed=1)
    save_adapter(tmp_path / "y", base, seed=1)
    body = rp.config(tmp_path, [rp.text_task(tmp_path)], base_model=None, merge={"name": "linear"})
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(body))
    said = rp.cli("check", file, expect=3)
    assert "base_model" in said.err
    assert "`path:`" not in said.err


# ---------------------------------------------------------------------------------- heads

LABELS = {"x": 3, "y": 4}


def encoder(family, n_labels, seed=0):
    if family == "bert":
        settings = {
            key: value
            for key, value in rp.SMALL.items()
            if key not in ("num_key_value_heads", "head_dim", "bos_token_id", "eos_token_id")
        }
        names = ("BertForSequenceClassification", "BertConfig")
    else:
        settings = {"vocab_size": tiny_models.VOCABULARY, "dim": 16, "hidden_dim": 24,
                    "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64}  # fmt: skip
        names = ("DistilBertForSequenceClassification", "DistilBertConfig")
    return tiny_models.make(*names, settings | {"num_labels": n_labels}, seed=seed)


def with_labels(model, n_labels, seed):
    """Return a perturbed copy of an encoder with a new classifier."""
    made = rp.perturbed(model, seed, scale=0.05)
    width = made.classifier.in_features
    torch.manual_seed(seed)
    made.classifier = torch.nn.Linear(width, n_labels)
    torch.nn.init.normal_(made.classifier.weight)
    made.num_labels = made.config.num_labels = n_labels
    return made


def head_names(family):
    return ("classifier",) if family == "bert" else ("pre_classifier", "classifier")


def labelled_tasks(folder, family):
    """Give each expert a task with the classes it says itself, and its head in a file."""
    tasks = []
    for name, n_labels in LABELS.items():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder / name
        ).eval()
        gold = [int(class_probabilities(model, text).argmax()) for text in rp.TEXTS]
        rows = [{"text": t, "label": g} for t, g in zip(rp.TEXTS, gold, strict=True)]
        head = {
            key: tensor
            for key, tensor in rp.tensors_of(folder / name).items()
            if key.startswith(tuple(f"{part}." for part in head_names(family)))
        }
        assert head["classifier.weight"].shape[0] == n_labels
        save_file(head, folder / f"{name}-head.safetensors")
        evaluator = {
            "name": "classification",
            "examples": str(rp.write_rows(folder / f"{name}.jsonl", rows)),
            "head": str(folder / f"{name}-head.safetensors"),
            "metric": "probability",
        }
        tasks.append({"name": name, "evaluator": evaluator})
    return tasks


def class_probabilities(model, text):
    ids = torch.tensor([byte_tokenizer().encode(text)])
    with torch.inference_mode():
        return model(input_ids=ids).logits[0].softmax(-1)


def score_with_head(exported, head, rows):
    """Return the mean probability of the right class with another head put on by hand."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(exported)
    state = load_file(head)
    rows_of_head = state["classifier.weight"].shape[0]
    model.classifier = torch.nn.Linear(model.classifier.in_features, rows_of_head)
    found = model.load_state_dict(state, strict=False)
    assert not found.unexpected_keys
    model.eval()
    return np.mean([float(class_probabilities(model, r["text"])[r["label"]]) for r in rows])


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_classifiers_that_differ_are_left_out_and_each_task_brings_its_own(family, tmp_path):
    base = encoder(family, 2)
    rp.save(base, tmp_path / "base")
    for seed, (name, n_labels) in enumerate(LABELS.items(), start=1):
        rp.save(with_labels(base, n_labels, seed), tmp_path / name)
    body = rp.config(
        tmp_path,
        labelled_tasks(tmp_path, family),
        algorithm={"name": "nsga2", "population_size": 4},
    )
    run, facts = rp.search(tmp_path / "work", body)
    assert set(facts["left_out"]) == {"classifier.weight", "classifier.bias"}
    said = rp.cli("check", tmp_path / "work" / "config.yaml").out
    assert "2 left out of the merge\n  classifier.bias: shapes differ" in said
    founders = {e["origin"]: e["id"] for e in rp.journal(run) if e["kind"] == "asked"}
    told = {e["id"]: e["objectives"] for e in rp.journal(run) if e["kind"] == "told"}
    for number, name in enumerate(LABELS):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / name)
        own = [float(class_probabilities(model.eval(), r["text"])[r["label"]]) for r in rows]
        assert told[founders[f"founder: {name}"]][number] == pytest.approx(np.mean(own), abs=1e-5)
    found = rp.export(tmp_path / "work", run, facts, rp.searched_candidate(run, "task_arithmetic"))
    written, first = rp.tensors_of(found.folder), rp.tensors_of(tmp_path / "base")
    assert torch.equal(written["classifier.weight"], first["classifier.weight"]), "the donor's head"
    rp.logits_of(found.folder, SEQUENCE)
    for name in LABELS:
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        again = score_with_head(found.folder, tmp_path / f"{name}-head.safetensors", rows)
        assert found.row["search"][name] == pytest.approx(again, abs=1e-5)


def masked_bert(base):
    """Return a masked language model around the encoder of `base`: no pooler, no classifier."""
    made = transformers.BertForMaskedLM(base.config)
    made.bert.load_state_dict(base.bert.state_dict(), strict=False)
    return made


def test_a_base_without_a_classifier_takes_the_heads_of_its_fine_tunes(tmp_path):
    first = encoder("bert", 2)
    rp.save(masked_bert(first), tmp_path / "base")
    for seed, (name, n_labels) in enumerate(LABELS.items(), start=1):
        rp.save(with_labels(first, n_labels, seed), tmp_path / name)
    tasks = labelled_tasks(tmp_path, "bert")
    body = rp.config(tmp_path, tasks)
    # The base has no pooler either: heads must bring it, and say so when they do not.
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(body))
    said = rp.cli("check", file, expect=3).out
    assert "bert.pooler.dense.weight: only in 'x', 'y'" in said
    assert "✗ dry run: x: " in said, "the dry run meets what every candidate would"
    rp.cli("search", file, "--run", tmp_path / "failing", "--set", "budget.evaluations=2", expect=3)
    errors = [e["error"] for e in rp.journal(tmp_path / "failing") if e["kind"] == "told"]
    assert "bert.pooler.dense.bias" in errors[0]
    assert "head" in errors[0]
    for name in LABELS:
        head = {
            key: tensor
            for key, tensor in rp.tensors_of(tmp_path / name).items()
            if key.startswith(("classifier.", "bert.pooler."))
        }
        save_file(head, tmp_path / f"{name}-head.safetensors")
    found = rp.search_and_export(tmp_path / "work", body)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForMaskedLM.from_pretrained(found.folder)
    assert model.config.architectures == ["BertForMaskedLM"]


def test_a_base_saved_without_its_prefix_is_lined_up_with_its_fine_tunes(tmp_path):
    """Encoders are often published bare ("encoder.…") and fine-tuned with a head ("bert.…")."""
    first = encoder("bert", 2)
    rp.save(first.bert, tmp_path / "base")
    for seed, (name, n_labels) in enumerate(LABELS.items(), start=1):
        rp.save(with_labels(first, n_labels, seed), tmp_path / name)
    body = rp.config(tmp_path, labelled_tasks(tmp_path, "bert"))
    found = rp.search_and_export(tmp_path / "work", body)
    assert set(found.facts["left_out"]) == {"classifier.weight", "classifier.bias"}
    tensors = [rp.tensors_of(tmp_path / name) for name in ("base", *LABELS)]
    stripped = [
        rp.folder_of(
            tmp_path / "base",
            {n.removeprefix("bert."): t for n, t in item.items() if "classifier" not in n},
            tmp_path / f"stripped-{i}",
        )
        for i, item in enumerate(tensors)
    ]
    run = tmp_path / "work" / "run"
    found = rp.export(
        tmp_path / "work", run, found.facts, rp.searched_candidate(run, "task_arithmetic")
    )
    merged = rp.dense_merge(stripped, rp.task_vectors(found))
    written = rp.tensors_of(found.folder)
    assert set(written) == set(merged)
    for name, tensor in merged.items():
        torch.testing.assert_close(written[name], tensor, rtol=2e-5, atol=2e-5)
    transformers.AutoModel.from_pretrained(found.folder)
    again = rp.cli("merge", found.folder / "recipe.json", "--out", tmp_path / "again", "--json")
    assert again.json["weights_digest"] == found.row["weights_digest"]


# --------------------------------------------------------------------------- vocabularies

ROWS = tiny_models.VOCABULARY
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def reordered(folder, out, *, seed, tied=False):
    """Save a model with its token rows in another order and one more token behind them."""
    usual = byte_tokenizer().get_vocab()
    order = np.random.default_rng(seed).permutation(ROWS)
    raw = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    raw["model"]["vocab"] = {token: int(order[row]) for token, row in usual.items()} | {"zz": ROWS}
    for token in raw["added_tokens"]:
        token["id"] = int(order[usual[token["content"]]])
    raw["post_processor"]["special_tokens"]["<s>"]["ids"] = [int(order[256])]
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    settings = model.config.to_dict() | {"vocab_size": ROWS + 1, "tie_word_embeddings": tied}
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    state = dict(model.state_dict())
    for name in (EMBED, HEAD):
        rows = torch.randn(ROWS + 1, state[name].shape[1], generator=torch.manual_seed(seed))
        rows[torch.from_numpy(order)] = state[name]
        state[name] = rows
    if tied:
        state[HEAD] = state[EMBED]
    made.load_state_dict(state)
    rp.save(made, out, tokenizer=False)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(raw)),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    tokenizer.save_pretrained(out)
    return out


@pytest.mark.parametrize("base_is_tied", [False, True])
def test_other_token_orders_are_merged_by_token(base_is_tied, tmp_path):
    rp.save_family(tmp_path, rp.llama(tie_word_embeddings=base_is_tied))
    body = rp.config(tmp_path, [rp.text_task(tmp_path)])
    run, _ = rp.search(tmp_path / "plain", body)
    reordered(tmp_path / "x", tmp_path / "x2", seed=4, tied=base_is_tied)
    body["models"] = [{"name": "x", "model": str(tmp_path / "x2")}, str(tmp_path / "y")]
    again, facts = rp.search(tmp_path / "reordered", body)
    told = [[e for e in rp.journal(r) if e["kind"] == "told"] for r in (run, again)]
    assert [e["weights"] for e in told[0]] == [e["weights"] for e in told[1]]
    pick = rp.searched_candidate(again, "task_arithmetic")
    found = rp.export(tmp_path / "reordered", again, facts, pick)
    merged = rp.dense_merge([tmp_path / n for n in ("base", "x", "y")], rp.task_vectors(found))
    rp.assert_same_model(found.folder, merged, tmp_path / "base", tmp_path)
    tokens = transformers.AutoTokenizer.from_pretrained(found.folder)
    assert tokens.get_vocab() == byte_tokenizer().get_vocab()
    again = rp.cli("merge", found.folder / "recipe.json", "--out", tmp_path / "again", "--json")
    assert again.json["weights_digest"] == found.row["weights_digest"]


def untied_copy(folder, out, seed):
    """Save a tied model with a head of its own."""
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    settings = model.config.to_dict() | {"tie_word_embeddings": False}
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    made.load_state_dict(model.state_dict())
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made.lm_head.weight += 0.1 * torch.randn(made.lm_head.weight.shape, generator=noise)
    return rp.save(made, out)


@pytest.mark.parametrize("untied", ["base", "x"])
def test_one_untied_model_unties_the_merge(untied, tmp_path):
    rp.save_family(tmp_path, rp.llama(tie_word_embeddings=True))
    untied_copy(tmp_path / untied, tmp_path / "untied", seed=8)
    where = {name: tmp_path / name for name in ("base", "x", "y")} | {untied: tmp_path / "untied"}
    body = rp.config(
        tmp_path,
        [rp.text_task(tmp_path)],
        base_model=str(where["base"]),
        models=[{"name": name, "model": str(where[name])} for name in ("x", "y")],
    )
    run, facts = rp.search(tmp_path / "work", body)
    found = rp.export(tmp_path / "work", run, facts, rp.searched_candidate(run, "task_arithmetic"))
    full = []
    for name, folder in where.items():
        tensors = rp.tensors_of(folder)
        tensors.setdefault(HEAD, tensors[EMBED])
        full.append(rp.folder_of(folder, tensors, tmp_path / f"full-{name}"))
    settings = json.loads((full[0] / "config.json").read_text()) | {"tie_word_embeddings": False}
    (full[0] / "config.json").write_text(json.dumps(settings))
    merged = rp.dense_merge(full, rp.task_vectors(found))
    rp.assert_same_model(found.folder, merged, full[0], tmp_path)


@pytest.mark.parametrize("padded", ["base", "x"])
def test_padding_rows_come_from_the_base(padded, tmp_path):
    rp.save_family(tmp_path, rp.llama())
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / padded)
    model.resize_token_embeddings(ROWS + 10, mean_resizing=False)
    rp.save(model, tmp_path / "padded")
    where = {name: tmp_path / name for name in ("base", "x", "y")} | {padded: tmp_path / "padded"}
    body = rp.config(
        tmp_path,
        [rp.text_task(tmp_path)],
        base_model=str(where["base"]),
        models=[{"name": name, "model": str(where[name])} for name in ("x", "y")],
    )
    run, facts = rp.search(tmp_path / "work", body)
    found = rp.export(tmp_path / "work", run, facts, rp.searched_candidate(run, "task_arithmetic"))
    tensors = [rp.tensors_of(folder) for folder in where.values()]
    n_rows = len(tensors[0][EMBED])
    for name in (EMBED, HEAD):
        for expert in tensors[1:]:
            rows = tensors[0][name].clone()
            rows[:ROWS] = expert[name][:ROWS]
            expert[name] = rows
    full = [
        rp.folder_of(where["base"], item, tmp_path / f"full-{i}") for i, item in enumerate(tensors)
    ]
    merged = rp.dense_merge(full, rp.task_vectors(found))
    assert len(merged[EMBED]) == n_rows
    rp.assert_same_model(found.folder, merged, full[0], tmp_path)


def test_an_adapter_on_a_model_with_other_token_rows_is_lined_up(tmp_path):
    base = rp.save(rp.llama(), tmp_path / "base")
    deltas = save_adapter(tmp_path / "adapter", base, seed=3)
    reordered(base, tmp_path / "other", seed=4)
    body = rp.config(
        tmp_path,
        [rp.text_task(tmp_path)],
        models=[{"name": "x", "model": str(tmp_path / "other"), "lora": str(tmp_path / "adapter")}],
        merge={"name": "task_arithmetic"},
    )
    run, facts = rp.search(tmp_path / "work", body)
    found = rp.export(tmp_path / "work", run, facts, rp.searched_candidate(run, "task_arithmetic"))
    rp.assert_same_model(found.folder, lora_merge(found, base, [deltas]), base, tmp_path)


def test_a_padding_token_without_a_row_does_not_break_scoring(tmp_path):
    """Tokenizers often got a `[PAD]` behind the model's last row, and nobody resized the model."""
    rp.save_family(tmp_path, rp.llama(pad_token_id=None))
    for name in ("base", "x", "y"):
        tokenizer = byte_tokenizer()
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        assert tokenizer.pad_token_id == ROWS
        tokenizer.save_pretrained(tmp_path / name)
    body = rp.config(tmp_path, [rp.text_task(tmp_path)])
    rp.search_and_export(tmp_path / "work", body)


def test_a_token_without_a_row_is_named(tmp_path):
    rp.save_family(tmp_path, rp.llama())
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["@@"])
    tokenizer.save_pretrained(tmp_path / "base")
    body = rp.config(tmp_path, [rp.text_task(tmp_path, texts=("a @@ b", "c d"))])
    (tmp_path / "config.yaml").write_text(json.dumps(body | {"budget": {"evaluations": 2}}))
    rp.cli("search", tmp_path / "config.yaml", "--run", tmp_path / "run", expect=3)
    errors = [e["error"] for e in rp.journal(tmp_path / "run") if e["kind"] == "told"]
    assert errors[1].startswith(f"candidate 1: token '@@' has row {ROWS}, but the model has {ROWS}")
