"""Searches over layer sequences through the command line, and the hybrid of both searches."""

import json

import numpy as np
import pytest
import torch

from evomerge.config.workers import build_worker
from evomerge.core.layer_sequence import plan_of
from evomerge.core.recipe import Recipe
from tests.e2e import real_project as rp
from tests.e2e.test_adapters_and_heads import save_adapter

pytestmark = pytest.mark.slow

ALGORITHMS = {
    "cma_es": {"name": "cma_es"},
    "nsga2": {"name": "nsga2", "population_size": 6},
    "auto": {"name": "auto"},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A Llama of three layers and two fine-tunes of it."""
    folder = tmp_path_factory.mktemp("models")
    return rp.save_family(folder, rp.llama(num_hidden_layers=3, tie_word_embeddings=True))


def three_tasks(folder):
    rows = [{"prompt": f"{a} {b}", "answer": b} for a in "abc" for b in "xyz"]
    asked = rp.write_rows(folder / "asked.jsonl", rows)
    rows = [{"prompt": f"{a} is", "options": [" x", " yes", " no way"], "gold": i % 3}
            for i, a in enumerate("abcdefg")]  # fmt: skip
    chosen = rp.write_rows(folder / "chosen.jsonl", rows)
    exact = {"name": "exact_match", "examples": str(asked), "max_new_tokens": 5, "batch_size": 4}
    choice = {"name": "multiple_choice", "examples": str(chosen), "batch_size": 3}
    return [
        {"name": "exact", "evaluator": exact},
        {"name": "choice", "evaluator": choice},
        rp.text_task(folder),
    ]


def body_of(models, folder, algorithm, **merge):
    return rp.config(
        models,
        three_tasks(folder),
        base_model=None,
        models=[{"name": name, "model": str(models / name)} for name in ("x", "y")],
        merge={"name": "layer_sequence", **merge},
        algorithm=algorithm,
        budget={"evaluations": 16},
    )


@pytest.mark.parametrize(
    ("algorithm", "merge"),
    [
        ("cma_es", {"repeats": 2, "scaling": "low_rank", "rank": 2}),
        ("nsga2", {"start": "y", "repeats": 2, "max_layers": 7}),
        ("auto", {"keep_first": 1, "keep_last": 1, "scaling": "layer", "scale_at": "jumps"}),
    ],
)
def test_search_resume_front_and_export(algorithm, merge, models, tmp_path):
    body = body_of(models, tmp_path, ALGORITHMS[algorithm], **merge)
    run, facts = rp.search(tmp_path / "work", body)
    assert sorted(facts["layers"].items()) == [("x", 3), ("y", 3)]
    done = rp.cli("resume", run, "--evaluations", 20, "--json").json
    assert (done["evaluations"], done["failed"]) == (20, 0)
    own = rp.searched_candidate(run, "layer_sequence")
    found = rp.export(tmp_path / "work", run, facts, own)
    asked = {e["id"]: e for e in rp.journal(run) if e["kind"] == "asked"}
    recipe = Recipe.from_json(asked[int(own.split(":")[1])]["recipe"])
    record = json.loads((found.folder / "recipe.json").read_text())
    assert record["stacks"][0]["plan"] == plan_of(recipe).to_json()
    assert [e["origin"] for e in asked.values()][:2] == (
        ["founder: y", "founder: layers of x"]
        if merge.get("start") == "y"
        else ["founder: x", "founder: layers of y"]
    )
    n_layers = len(recipe.params["layer"])
    assert json.loads((found.folder / "config.json").read_text())["num_hidden_layers"] == n_layers
    rp.logits_of(found.folder)
    rp.cli("merge", found.folder / "recipe.json", "--out", tmp_path / "again")
    first, again = rp.tensors_of(found.folder), rp.tensors_of(tmp_path / "again")
    assert set(first) == set(again)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    # The worker of another process scores what this one scored.
    worker = build_worker(run, "cpu", 1, "other")
    digest = worker.install(recipe)
    told = next(
        e for e in rp.journal(run) if e["kind"] == "told" and e["id"] == int(own.split(":")[1])
    )
    assert digest == record["weights_digest"]
    scores = worker.score()
    assert set(scores) == {"exact", "choice", "text"}
    np.testing.assert_allclose(
        told["objectives"], [scores[name].mean() for name in ("exact", "choice", "text")], rtol=1e-6
    )


def test_merged_models_are_sources_of_a_search_over_layers(models, tmp_path):
    """The hybrid: a search over weights, then one over the layers of what it found."""
    tasks = [rp.text_task(tmp_path, "first", rp.TEXTS[:3]),
             rp.text_task(tmp_path, "second", rp.TEXTS[3:])]  # fmt: skip
    weights = {
        "name": "dare_ties",
        "groups": "block:2",
        "weights": "search",
        "density": "search",
    }
    body = rp.config(models, tasks, merge=weights, algorithm={"name": "cma_es"})
    run, facts = rp.search(tmp_path / "ps", body)
    merged = rp.export(tmp_path / "ps", run, facts, "best:first").folder
    other = rp.export(tmp_path / "ps", run, facts, "best:second").folder
    layers = {"name": "layer_sequence", "repeats": 2, "scaling": "layer"}
    body = rp.config(
        models,
        tasks,
        base_model=None,
        models=[{"name": "merged", "model": str(merged)}, {"name": "other", "model": str(other)}],
        merge=layers,
        algorithm={"name": "cma_es"},
    )
    run, facts = rp.search(tmp_path / "dfs", body)
    found = rp.export(tmp_path / "dfs", run, facts, rp.searched_candidate(run, "layer_sequence"))
    rp.logits_of(found.folder)


def test_adapters_are_sources_of_a_search_over_layers(models, tmp_path):
    base = models / "base"
    for seed, name in enumerate(("p", "q")):
        save_adapter(tmp_path / name, base, seed=seed)
    body = rp.config(
        models,
        [rp.text_task(tmp_path)],
        models=[{"name": n, "model": str(base), "lora": str(tmp_path / n)} for n in ("p", "q")],
        merge={"name": "layer_sequence", "repeats": 2, "scaling": "layer"},
    )
    run, facts = rp.search(tmp_path / "work", body)
    assert sorted(facts["layers"]) == ["p", "q"]
    found = rp.export(tmp_path / "work", run, facts, rp.searched_candidate(run, "layer_sequence"))
    out = tmp_path / "adapter"
    number = rp.searched_candidate(run, "layer_sequence")
    said = rp.cli("export", run, "--pick", number, "--out", out, "--adapter", expect=2)
    assert "--adapter: a sequence of layers is no adapter" in said.err
    rp.logits_of(found.folder)


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"algorithm": {"name": "ga"}}, 2, "'ga' breeds linear combinations"),
        ({"merge": {"name": "layer_sequence", "scaling": "rows"}}, 2, "merge.scaling"),
        ({"merge": {"name": "layer_sequence", "start": "z"}}, 2, "merge.start: 'z' is not a model"),
        ({"transforms": [{"name": "tsv_m"}], "base_model": "base"}, 2, "not models with layers"),
        ({"constraints": [{"task": "exact", "at_least": "y"}]}, 2, "only 'x', the start"),
    ],
)
def test_what_cannot_be_searched_is_said_before(changes, code, says, models, tmp_path):
    body = body_of(models, tmp_path, {"name": "random"})
    if changes.get("base_model"):
        changes = changes | {"base_model": str(models / "base")}
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(body | changes))
    assert says in rp.cli("check", file, expect=code).err
