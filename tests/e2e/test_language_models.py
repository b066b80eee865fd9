"""Language models: every merge method, algorithm and evaluator, through the command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml

from tests.e2e import merge_formulas as formulas
from tests.e2e import real_project as rp
from tests.e2e.tiny_run import evomerge
from tests.evaluation.tiny_models import byte_tokenizer

SHARED = Path(__file__).parents[2].parent / "shared"
PROMPTS = tuple(f"{first} {second}" for first in "abcdef" for second in "nopqr")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tied Llama and two experts, with a perplexity task over each half of the texts."""
    return rp.save_family(tmp_path_factory.mktemp("models"), rp.llama(tie_word_embeddings=True))


def two_tasks(folder):
    return [
        rp.text_task(folder, "first", rp.TEXTS[:3]),
        rp.text_task(folder, "second", rp.TEXTS[3:]),
    ]


def sources(folder, names=("base", "x", "y")):
    return [rp.tensors_of(folder / name) for name in names]


# -------------------------------------------------------------------------- merge methods

# Name -> (merge section, models)
METHODS = {
    "linear": ({"name": "linear"}, ("base", "x", "y")),
    "task_arithmetic": (
        {"name": "task_arithmetic", "lambda_": "search"},
        ("base", "x", "y"),
    ),
    "slerp": ({"name": "slerp"}, ("base", "x")),
    "slerp-task-vectors": ({"name": "slerp", "t": "search"}, ("base", "x", "y")),
    "nuslerp": ({"name": "nuslerp"}, ("base", "x", "y")),
    "ties": ({"name": "ties", "density": "search", "lambda_": [0.5, 1.5]}, ("base", "x", "y")),
    "ties-mergekit": (
        {"name": "ties", "compat": "mergekit", "density": [0.2, 1.0]},
        ("base", "x", "y"),
    ),
    "dare_linear": ({"name": "dare_linear", "density": [0.2, 0.8]}, ("base", "x", "y")),
    "dare_ties": ({"name": "dare_ties", "density": [0.2, 0.8]}, ("base", "x", "y")),
}
ALGORITHMS = ({"name": "random"}, {"name": "cma_es"}, {"name": "tpe", "startup_evaluations": 3})


@pytest.mark.parametrize("groups", ["global", "layer", "module"])
@pytest.mark.parametrize("method", METHODS)
def test_each_method_searched_and_exported_is_its_formula(method, groups, models, tmp_path):
    section, names = METHODS[method]
    number = list(METHODS).index(method) + len(groups)
    body = rp.config(
        models,
        [rp.text_task(tmp_path)],
        models=[str(models / name) for name in names[1:]],
        merge=section
        | {"groups": groups, **({"t": "search"} if section["name"] == "slerp" else {})},
        algorithm=ALGORITHMS[number % len(ALGORITHMS)],
    )
    run, facts = rp.search(tmp_path / "work", body)
    found = rp.export(tmp_path / "work", run, facts, rp.searched_candidate(run, section["name"]))
    opened = sources(models, names)
    rows = formulas.rows_of(found.recipe, list(opened[0]))
    written = rp.tensors_of(found.folder)
    if section["name"].startswith("dare"):
        check_dare(section["name"], rows, opened, written)
        return
    flat = [
        torch.cat([(expert[n] - opened[0][n]).flatten() for n in expert]) for expert in opened[1:]
    ]
    formula = {
        "linear": formulas.linear,
        "task_arithmetic": formulas.task_arithmetic,
        "slerp": formulas.slerp,
        "nuslerp": formulas.nuslerp,
        "ties": lambda row, values: formulas.ties_paper(row, values, flat),
        "ties-mergekit": formulas.ties_mergekit,
    }[method.removesuffix("-task-vectors")]
    merged = {
        name: formula(rows[name], [tensors[name].double() for tensors in opened]).float()
        for name in written
    }
    rp.assert_same_model(found.folder, merged, models / "base", tmp_path)


def check_dare(name, rows, opened, written):
    """Masks are random: every element must be the formula's for some choice of what was dropped."""
    combine = {
        "dare_linear": lambda d, w: sum(x * v for x, v in zip(w, d, strict=True)),
        "dare_ties": lambda d, w: formulas.vote(d, w, [1.0] * len(d), "none"),
    }[name]
    n_kept = n_elements = 0.0
    expected = 0.0
    for tensor, merged in written.items():
        values = [tensors[tensor].double() for tensors in opened]
        if merged.dim() <= 1:  # norms are not dropped from
            whole = formulas.task_arithmetic(rows[tensor], values)
            torch.testing.assert_close(merged.double(), whole, rtol=1e-5, atol=1e-5)
            continue
        options = torch.stack(formulas.dare_values(rows[tensor], values, combine))
        error, choice = (options - merged.double()).abs().min(0)
        assert float(error.max()) < 2e-5, tensor
        if name == "dare_linear":
            n_kept += float((choice >= 2).sum() + (choice % 2).sum())
            n_elements += 2 * merged.numel()
            expected += 2 * merged.numel() * float(rows[tensor]["density"])
    if name == "dare_linear":
        assert abs(n_kept - expected) / n_elements < 0.02, "as many are kept as the density says"


# ----------------------------------------------------------------------------- algorithms

SEARCHES = {
    "m2n2": ({"name": "m2n2", "population_size": 5}, {"name": "linear", "normalize": False}),
    "cma_es": ({"name": "cma_es"}, None),
    "nevergrad-DE": ({"name": "nevergrad", "optimizer": "DE"}, None),
    "nsga2": ({"name": "nsga2", "population_size": 4}, None),
    "tpe": ({"name": "tpe", "startup_evaluations": 4}, None),
    "optuna": ({"name": "optuna", "sampler": "QMCSampler"}, None),
    "random": ({"name": "random"}, None),
}


def cut_short(run, out):
    """Copy a run as a crash would have left it: its journal ends in the middle of a line."""
    shutil.copytree(run, out)
    whole = (run / "journal.jsonl").read_bytes()
    (out / "journal.jsonl").write_bytes(whole[: len(whole) * 2 // 3])


@pytest.mark.parametrize("algorithm", SEARCHES)
def test_each_algorithm_copes_with_negative_scores_repeats_itself_and_resumes(
    algorithm, models, tmp_path
):
    section, merge = SEARCHES[algorithm]
    body = rp.config(
        models,
        two_tasks(tmp_path),
        algorithm=section,
        merge=merge or {"name": "task_arithmetic", "groups": "layer"},
        budget={"evaluations": 20},
    )
    run, facts = rp.search(tmp_path / "one", body)
    again, _ = rp.search(tmp_path / "two", body)
    for file in ("journal.jsonl", "scores.f32", "front.json", "derived.npz"):
        assert (run / file).read_bytes() == (again / file).read_bytes(), file
    cut_short(run, tmp_path / "cut")
    rp.cli("resume", tmp_path / "cut")
    for file in ("journal.jsonl", "scores.f32", "front.json"):
        assert (run / file).read_bytes() == (tmp_path / "cut" / file).read_bytes(), file
    told = [event for event in rp.journal(run) if event["kind"] == "told"]
    assert all(value < 0 for event in told for value in event["objectives"])
    status = rp.cli("status", run, "--json").json
    assert status["hypervolume"] > 0
    found = rp.export(tmp_path / "one", run, facts)
    assert found.row["candidate"] in [m["candidate"] for m in rp.cli("front", run, "--json").json]


def test_m2n2_breeds_from_its_members_and_its_segments_merge_again(models, tmp_path):
    algorithm, merge = SEARCHES["m2n2"]
    body = rp.config(
        models, two_tasks(tmp_path), algorithm=algorithm, merge=merge, budget={"evaluations": 20}
    )
    run, facts = rp.search(tmp_path / "work", body)
    asked = [event for event in rp.journal(run) if event["kind"] == "asked"]
    child = next(
        e for e in reversed(asked) if e["parents"] and len(e["recipe"].get("breaks", [])) > 3
    )
    found = rp.export(tmp_path / "work", run, facts, f"candidate:{child['id']}")
    merged = formulas.segments(found.recipe, sources(models))
    rp.assert_same_model(found.folder, merged, models / "base", tmp_path)
    again = rp.cli(
        "merge", found.folder / "recipe.json", "--out", tmp_path / "again", "--json"
    ).json
    assert again["weights_digest"] == found.row["weights_digest"]


@pytest.mark.parametrize(
    ("key", "value"), [("groups", "layer"), ("weights", [0.2, 0.8]), ("normalize", None)]
)
def test_m2n2_refuses_what_it_would_pass_over(key, value, models, tmp_path):
    merge = {"name": "linear", key: value} if value else {"name": "linear"}
    body = rp.config(models, two_tasks(tmp_path), algorithm={"name": "m2n2"}, merge=merge)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(body))
    if value is None:
        founders = rp.cli("check", file, "--json").json["founders"]
        run, _ = rp.search(tmp_path / "work", body)
        origins = [e["origin"] for e in rp.journal(run) if e["kind"] == "asked"]
        assert sum(origin.startswith("founder") for origin in origins) == founders
    else:
        assert f"merge.{key}: 'm2n2'" in rp.cli("check", file, expect=2).err


def test_other_models_in_an_existing_run_are_named(models, tmp_path):
    body = rp.config(models, [rp.text_task(tmp_path)], budget={"evaluations": 2})
    run, _ = rp.search(tmp_path / "work", body)
    for changed, key in (
        ([{"name": "x", "model": str(models / "y")}, str(models / "base")], "models.0.model"),
        ([str(models / "x")], "models was"),
    ):
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(body | {"models": changed}))
        said = rp.cli("search", tmp_path / "c.yaml", "--run", run, expect=3)
        assert f"holds a run of another config: {key}" in said.err


def test_a_process_of_its_own_finds_the_same(models, tmp_path):
    body = rp.config(models, two_tasks(tmp_path), algorithm={"name": "cma_es"})
    run, _ = rp.search(tmp_path / "here", body)
    there = tmp_path / "there"
    done = evomerge("search", tmp_path / "here" / "config.yaml", "--run", there)
    assert done.returncode == 0, done.stderr
    for file in ("journal.jsonl", "scores.f32", "front.json"):
        assert (run / file).read_bytes() == (there / file).read_bytes(), file
    rp.cli("export", there, "--out", tmp_path / "out", "--verify")


# ------------------------------------------------------------------------------ baseless


@pytest.mark.parametrize("method", ["linear", "slerp", "nuslerp", "m2n2"])
def test_two_models_merge_without_a_base(method, models, tmp_path):
    changes = {"merge": {"name": method, **({"t": "search"} if method == "slerp" else {})}}
    if method == "m2n2":
        changes = dict(zip(("algorithm", "merge"), SEARCHES["m2n2"], strict=True))
    body = rp.config(models, two_tasks(tmp_path), base_model=None, **changes)
    run, facts = rp.search(tmp_path / "work", body)
    assert set(facts["models"]) == {"x", "y"}
    operator = "linear" if method == "m2n2" else method
    found = rp.export(tmp_path / "work", run, facts, rp.searched_candidate(run, operator))
    opened = sources(models, ("x", "y"))
    if "breaks" in found.recipe:
        merged = formulas.segments(found.recipe, opened)
    else:
        rows = formulas.rows_of(found.recipe, list(opened[0]))
        formula = getattr(formulas, operator)
        merged = {
            name: formula(rows[name], [tensors[name].double() for tensors in opened]).float()
            for name in opened[0]
        }
    rp.assert_same_model(found.folder, merged, models / "x", tmp_path)


# ---------------------------------------------------------------------------- evaluators


def greedy(model, prompt, n_tokens):
    """Return a greedy answer, token by token, without `generate`."""
    tokenizer = byte_tokenizer()
    ids = [256, *tokenizer.encode(prompt, add_special_tokens=False)]
    start = len(ids)
    with torch.inference_mode():
        while len(ids) - start < n_tokens:
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if token == 257:
                break
            ids.append(token)
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def mean_loglik(model, text):
    """Return the mean log-likelihood of the tokens of a text behind its first token."""
    ids = torch.tensor([[256, *byte_tokenizer().encode(text, add_special_tokens=False)]])
    with torch.inference_mode():
        logprobs = model(ids).logits.float().log_softmax(-1)
    return float(logprobs[0, :-1].gather(1, ids[0, 1:, None]).mean())


def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def skills(models):
    """Data on which expert x always answers right and expert y prefers the right option."""
    x, y = load(models / "x"), load(models / "y")
    rows = [(prompt, greedy(x, prompt, 2)) for prompt in PROMPTS]
    # A random model answers in random bytes; only whole characters can be written down.
    answers = [{"prompt": p, "answer": a} for p, a in rows if a.strip() and "\ufffd" not in a]
    options = [" yes", " no", " maybe"]
    choices = []
    for prompt in PROMPTS[:6]:
        liked = [mean_loglik(y, prompt + o) * (len(prompt + o)) for o in options]
        choices.append({"prompt": prompt, "options": options, "gold": int(np.argmax(liked))})
    rp.write_rows(models / "answers.jsonl", answers)
    rp.write_rows(models / "choices.jsonl", choices)
    rp.write_rows(models / "texts.jsonl", [{"text": text} for text in rp.TEXTS])
    return len(answers)


def skill_tasks(models, n_answers):
    return [
        {
            "name": "answers",
            "evaluator": {
                "name": "exact_match",
                "examples": str(models / "answers.jsonl"),
                "max_new_tokens": 2,
                "rows": [0, n_answers],
            },
        },
        {
            "name": "choices",
            "evaluator": {
                "name": "multiple_choice",
                "examples": str(models / "choices.jsonl"),
                "rows": [0, 4],
            },
            "held_out": {"rows": [4, 6]},
        },
        {
            "name": "texts",
            "evaluator": {
                "name": "perplexity",
                "examples": str(models / "texts.jsonl"),
                "rows": [0, 4],
            },
            "held_out": {"rows": [4, 6]},
        },
    ]


def test_skills_of_the_experts_are_measured_weighted_and_held_out(models, skills, tmp_path):
    assert skills >= 2
    body = rp.config(
        models,
        skill_tasks(models, skills),
        objectives=[
            {"name": "both", "tasks": {"answers": 3.0, "choices": 1.0}},
            {"name": "fluency", "tasks": {"texts": 1.0}},
        ],
        algorithm={"name": "nsga2", "population_size": 4},
        budget={"evaluations": 16},
    )
    run, facts = rp.search(tmp_path / "work", body)
    assert facts["held_out"] == {"choices": 2, "texts": 2}
    events = rp.journal(run)
    founders = {e["origin"]: e["id"] for e in events if e["kind"] == "asked"}
    told = {e["id"]: e["objectives"] for e in events if e["kind"] == "told"}
    x, y = load(models / "x"), load(models / "y")
    assert told[founders["founder: x"]][0] >= 0.75, "x answers everything, worth three quarters"
    rows = [json.loads(line) for line in (models / "answers.jsonl").read_text().splitlines()]
    right = np.mean([greedy(y, r["prompt"], 2).strip() == r["answer"].strip() for r in rows])
    assert told[founders["founder: y"]][0] == pytest.approx(0.75 * right + 0.25)
    expected = np.mean([mean_loglik(x, text) for text in rp.TEXTS[:4]])
    assert told[founders["founder: x"]][1] == pytest.approx(expected, abs=1e-4)
    for pick in ("knee", "best:fluency", "weights both=2,fluency=1"):
        found = rp.export(tmp_path / "work", run, facts, pick)
        model = load(found.folder)
        measured = np.mean([mean_loglik(model, text) for text in rp.TEXTS[4:]])
        assert found.row["held_out"]["texts"] == pytest.approx(measured, abs=1e-4)
        card = (found.folder / "README.md").read_text()
        assert "| both |" in card
        assert "| fluency |" in card


def test_bits_per_byte_and_windows_of_a_text_file(models, tmp_path):
    text = " ".join(rp.TEXTS) * 3
    (tmp_path / "book.txt").write_text(text)
    task = {
        "name": "book",
        "evaluator": {
            "name": "perplexity",
            "examples": str(tmp_path / "book.txt"),
            "window": 32,
            "rows": [0, 6],
            "bits_per_byte": True,
        },
        "held_out": {"rows": [6, 9]},
    }
    found = rp.search_and_export(tmp_path / "work", rp.config(models, [task]))
    assert set(found.row["held_out"]) == {"book"}
    model = load(found.folder)
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False)
    scores = []
    for i in range(6):
        window = ids[32 * i : 32 * (i + 1)]
        with torch.inference_mode():
            logprobs = model(torch.tensor([[256, *window]])).logits[0, :-1].log_softmax(-1)
        nats = float(logprobs.gather(1, torch.tensor(window)[:, None]).sum())
        scores.append(nats / np.log(2) / len(tokenizer.decode(window).encode()))
    assert found.row["search"]["book"] == pytest.approx(np.mean(scores), rel=1e-4)


# ------------------------------------------------------------------------------ mergekit

SAYABLE = {
    "linear": {"name": "linear"},
    "task_arithmetic": {"name": "task_arithmetic"},
    "ties": {"name": "ties", "compat": "mergekit", "density": [0.3, 0.9]},
    "nuslerp": {"name": "nuslerp"},
}


@pytest.mark.parametrize("groups", ["layer", "module"])
@pytest.mark.parametrize("method", SAYABLE)
def test_the_mergekit_config_of_an_export_merges_to_the_same_weights(
    method, groups, models, tmp_path
):
    body = rp.config(models, [rp.text_task(tmp_path)], merge=SAYABLE[method] | {"groups": groups})
    run, facts = rp.search(tmp_path / "work", body)
    found = rp.export(tmp_path / "work", run, facts, rp.searched_candidate(run, method))
    for file in ("mergekit_config.yml", "recipe.json"):
        out = tmp_path / f"again-{file}"
        again = rp.cli("merge", found.folder / file, "--out", out, "--json").json
        if file == "recipe.json":
            assert again["weights_digest"] == found.row["weights_digest"]
        written, first = rp.tensors_of(out), rp.tensors_of(found.folder)
        for name in first:
            torch.testing.assert_close(written[name], first[name], rtol=1e-6, atol=1e-6)


def test_a_mergekit_yaml_with_gradients_and_filters_is_its_formula(models, tmp_path):
    body = {
        "merge_method": "task_arithmetic",
        "base_model": str(models / "base"),
        "models": [
            {"model": str(models / "x"), "parameters": {"weight": [0.2, 0.8]}},
            {
                "model": str(models / "y"),
                "parameters": {"weight": [{"filter": "mlp", "value": 0.9}, {"value": 0.1}]},
            },
        ],
        "parameters": {"lambda": 0.7},
        "dtype": "float32",
    }
    (tmp_path / "merge.yml").write_text(yaml.safe_dump(body))
    rp.cli("merge", tmp_path / "merge.yml", "--out", tmp_path / "out")
    base, x, y = sources(models)
    merged = {}
    for name in base:
        layer = rp.layer_row(name, 4)  # 0: embeddings, 1 and 2: layers, 3: final norm
        first = 0.2 if layer <= 1 else 0.8
        second = 0.9 if "mlp" in name else 0.1
        delta = first * (x[name] - base[name]) + second * (y[name] - base[name])
        merged[name] = base[name] + 0.7 * delta
    rp.assert_same_model(tmp_path / "out", merged, models / "base", tmp_path)


# ------------------------------------------------------------------- a real language model


def fine_tuned(folder, ids, out, steps):
    """Fine-tune stories260K on one stretch of token ids."""
    model = load(folder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    windows = torch.tensor(ids[: steps * 8 * 64]).reshape(steps, 8, 64)
    for batch in windows:
        loss = model(batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(out)
    return out


def test_a_search_over_stories260k_beats_parents_and_average_on_new_text(tmp_path):
    folder = SHARED / "data" / "stories260k_hf"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    plays = (SHARED / "data/tinyshakespeare/input.txt").read_text()[:80_000]
    sums = [
        json.loads(line)["question"]
        for line in (SHARED / "data/gsm8k/train.jsonl").read_text().splitlines()[:400]
    ]
    tasks, experts = [], []
    for name, text, steps in (("plays", plays, 24), ("sums", "\n".join(sums), 12)):
        ids = tokenizer.encode(text, add_special_tokens=False)
        experts.append(str(fine_tuned(folder, ids, tmp_path / name, steps=steps)))
        rest = tokenizer.decode(ids[24 * 8 * 64 :])
        (tmp_path / f"{name}.txt").write_text(rest)
        evaluator = {"name": "perplexity", "examples": str(tmp_path / f"{name}.txt")}
        evaluator |= {"window": 64, "rows": [0, 24]}
        tasks.append({"name": name, "evaluator": evaluator, "held_out": {"rows": [24, 72]}})
    body = rp.config(
        tmp_path,
        tasks,
        base_model=str(folder),
        models=experts,
        merge={"name": "task_arithmetic", "groups": "global"},
        algorithm={"name": "cma_es"},
        budget={"evaluations": 20},
        objectives=[{"name": "mostly plays", "tasks": {"plays": 3.0, "sums": 1.0}}],
    )
    run, facts = rp.search(tmp_path / "work", body)
    best = rp.export(tmp_path / "work", run, facts, rp.searched_candidate(run, "task_arithmetic"))
    founders = {e["origin"]: e["id"] for e in rp.journal(run) if e["kind"] == "asked"}

    def mostly_plays(found):
        values = found.row["held_out"]
        return 0.75 * values["plays"] + 0.25 * values["sums"]

    def held_out(origin):
        pick = f"candidate:{founders[f'founder: {origin}']}"
        found = rp.export(tmp_path / "work", run, facts, pick)
        return mostly_plays(found)

    score = mostly_plays(best)
    rivals = {origin: held_out(origin) for origin in ("plays", "sums", "mean of the models")}
    assert score > max(rivals.values()), (score, rivals)
