"""What `fuzz.py` calls: every reader of files that strangers write, with real inputs to begin from.

A reader may refuse an input with an error of `evomerge.errors`; anything else that comes out of it
is a crash.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save

from benchmarks.fuzz_mutation import (
    Mutation,
    chained,
    mutated_journal,
    mutated_json,
    mutated_safetensors,
    mutated_yaml,
)
from benchmarks.fuzz_recipes import descendant, plain_recipes
from evomerge.config.merge_file import merge_file
from evomerge.config.mergekit_slices import read_slices
from evomerge.config.mergekit_yaml import read_mergekit
from evomerge.config.offline import check_offline
from evomerge.config.results import RunResults
from evomerge.config.schema import load_config, parse_config
from evomerge.core.ancestry import is_made
from evomerge.core.candidate import Candidate, Evaluation
from evomerge.core.model_space import ModelSpace, SourceHeader, TensorSpec, align
from evomerge.core.recipe import Recipe
from evomerge.search.events import asked_event, candidate_of, told_event
from evomerge.search.journal_recipes import JournalRecipes
from evomerge.storage.journal import read_journal
from evomerge.storage.journal_events import check_events
from evomerge.storage.model_folder import ModelFolder
from evomerge.storage.run_store import RunFolder, check_header
from evomerge.storage.safetensors_file import SafetensorsFile
from evomerge.storage.salvage import salvage
from evomerge.storage.untrusted_files import parse_json_object

Reader = Callable[[bytes], object]


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        share: Part of the executions it gets, relative to the others.
        make: Makes the function that is called with every input, given an empty folder.
        seeds: Valid inputs.
        mutate: How new inputs are made of old ones.
    """

    share: float
    make: Callable[[Path], Reader]
    seeds: Callable[[], Sequence[bytes]]
    mutate: Mutation


# ------------------------------------------------------------------------------- model files


def _tensors() -> dict[str, torch.Tensor]:
    return {
        "model.layers.0.mlp.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
        "model.embed.weight": torch.ones(2, 3, dtype=torch.bfloat16),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 4, dtype=torch.float16),
    }


def _weight_files() -> list[bytes]:
    return [
        save(_tensors(), metadata={"format": "pt"}),
        save({"w": torch.zeros(1, dtype=torch.int64)}),
        save({"a": torch.zeros((), dtype=torch.float64), "b": torch.zeros(3, dtype=torch.uint8)}),
    ]


def _safetensors(place: Path) -> Reader:
    path = place / "model.safetensors"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        file = SafetensorsFile(path)
        for name in file.specs:
            file.digest(name)
            file.read(name)

    return read


_INDEX = {
    "metadata": {"total_size": 62},
    "weight_map": {
        "model.layers.0.mlp.weight": "model-00001-of-00002.safetensors",
        "model.embed.weight": "model-00002-of-00002.safetensors",
    },
}
_CONFIG_JSON = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 1,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "text_config": {"hidden_size": 4, "vocab_size": 2},
}


def _model_folder(name: str) -> Callable[[Path], Reader]:
    def make(place: Path) -> Reader:
        tensors = _tensors()
        (place / "config.json").write_text(json.dumps(_CONFIG_JSON))
        (place / "model.safetensors.index.json").write_text(json.dumps(_INDEX))
        for tensor, shard in _INDEX["weight_map"].items():  # type: ignore[attr-defined]
            (place / shard).write_bytes(save({tensor: tensors[tensor]}))
        (place.parent / "outside.safetensors").write_bytes(save(tensors))

        def read(data: bytes) -> None:
            (place / name).write_bytes(data)
            folder = ModelFolder("m", place)
            for tensor in folder.specs:
                folder.read(tensor)

        return read

    return make


# ------------------------------------------------------------------------ recipes and journals


def _recipe(_: Path) -> Reader:
    def read(data: bytes) -> None:
        recipe = Recipe.from_json(parse_json_object(data, where="recipe"))
        again = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
        if again.digest() != recipe.digest():
            raise AssertionError("a recipe is another one after writing and reading")

    return read


def _merge_jsons() -> list[bytes]:
    bodies: list[dict[str, Any]] = [
        {
            "recipe": recipe.to_json(),
            "sources": [
                {"id": id, "model": f"./none/{id}", "revision": None, "lora": None, "digest": "0"}
                for id in recipe.sources
                if not is_made(id)
            ],
            "donor": "base",
            "has_base": True,
            "dtype": "float32",
        }
        for recipe in (*plain_recipes(), descendant())
    ]
    bodies[1]["transforms"] = [{"name": "tsv", "of": ["x"], "label": "t", "sources": {"t:0": "1"}}]
    return [json.dumps(body).encode() for body in bodies]


def _merge_file(suffix: str) -> Callable[[Path], Reader]:
    def make(place: Path) -> Reader:
        file = place / f"merge{suffix}"

        def read(data: bytes) -> None:
            file.write_bytes(data)
            merge_file(file, place / "out")

        return read

    return make


def _events() -> list[dict[str, Any]]:
    header = {"kind": "header", "format": 1, "tasks": {"low": 2, "high": 2}, "founders": 2}
    events: list[dict[str, Any]] = [header]
    for number, recipe in enumerate([*plain_recipes(), *plain_recipes()]):
        candidate = Candidate(number, recipe, tuple(range(number)), 0, "founder: mean")
        events.append(asked_event(candidate))
        if number == 3:
            events.append(told_event(Evaluation(candidate, error="no"), None, 0, ""))
        else:
            scored = Evaluation(candidate, weights_digest="ab")
            events.append(told_event(scored, [0.1 * number, 0.5], number, "00"))
    events.append(asked_event(Candidate(4, descendant(), (), 0, "crossover")))
    return events


def _journals() -> list[bytes]:
    return [chained(_events()), chained(_events()[:2])]


def _journal(place: Path) -> Reader:
    path = place / "journal.jsonl"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        events = read_journal(path)[0]
        check_events(events, path)
        recipes = JournalRecipes.of_events(events)
        for event in events:
            if event["kind"] == "header":
                check_header(event, path)
            if event["kind"] == "asked":
                candidate_of(event, 0, recipes)

    return read


def _run_results(place: Path) -> Reader:
    run = RunFolder(place / "run")
    run.path.mkdir()
    run.sources.write_text("[]")
    run.config.write_text(json.dumps(CONFIG))

    def read(data: bytes) -> None:
        run.journal.write_bytes(data)
        results = RunResults(run)
        results.status()
        for member in results.front_members():
            results.candidate(member["candidate"])

    return read


def _salvage(place: Path) -> Reader:
    run = RunFolder(place / "run")
    run.arrived.mkdir(parents=True)
    run.sources.write_text("[]")
    run.config.write_text(json.dumps(CONFIG))
    run.scores.write_bytes(bytes(64))

    def read(data: bytes) -> None:
        run.journal.write_bytes(data)
        salvage(run)

    return read


# ----------------------------------------------------------------------------------- configs

CONFIG: dict[str, Any] = {
    "name": "tiny",
    "seed": 5,
    "base_model": "models/base",
    "models": [{"name": "x", "model": "models/x"}, "models/y"],
    "merge": {"name": "ties", "groups": "block:4", "density": [0.2, 1.0], "compat": "paper"},
    "algorithm": {"name": "nsga2", "population_size": 8},
    "tasks": [
        {"name": name, "evaluator": {"name": "exact_match", "examples": f"{name}.jsonl"}}
        for name in ("low", "high")
    ],
    "budget": {"evaluations": 20},
}
_SEARCHED_METHODS: dict[str, Any] = {
    **CONFIG,
    "merge": {"any_of": [{"name": "linear"}, {"name": "dare_ties", "weights": [0, 2]}]},
    "constraints": [{"task": "low", "at_least": "0.95 * base"}],
    "objectives": [{"name": "o", "tasks": {"high": 1.0}}],
    "transforms": [{"name": "tsv_m", "of": ["x", "y"], "label": "t"}],
    "runtime": {"executor": "ray", "workers": 2},
}


def _config(_: Path) -> Reader:
    return lambda data: parse_config(parse_json_object(data, where="config"), "config")


def _config_yaml(place: Path) -> Reader:
    path = place / "config.yaml"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        load_config(path)

    return read


def _check(place: Path) -> Reader:
    """What `evomerge check --offline` does with a config that is well-formed."""

    def read(data: bytes) -> None:
        config = parse_config(parse_json_object(data, where="config"), "config")
        check_offline(config, place)

    return read


def _configs_json() -> list[bytes]:
    return [json.dumps(body).encode() for body in (CONFIG, _SEARCHED_METHODS)]


def _configs_yaml() -> list[bytes]:
    return [yaml.safe_dump(body).encode() for body in (CONFIG, _SEARCHED_METHODS)]


_MERGEKIT = (
    b"""merge_method: ties
base_model: models/base
models:
  - model: models/x
    parameters: {weight: [0, 0.5, 1], density: 0.5}
  - model: models/y+lora
    parameters:
      weight:
        - {filter: mlp, value: 0.3}
        - 0.7
parameters: {normalize: true, int8_mask: false}
dtype: bfloat16
""",
    b"""merge_method: slerp
base_model: models/x
slices:
  - sources:
      - {model: models/x, layer_range: [0, 2]}
      - {model: models/y, layer_range: [0, 2]}
parameters: {t: [{filter: self_attn, value: [0, 1]}, {value: 0.5}]}
""",
    b"""merge_method: passthrough
slices:
  - sources: [{model: models/x, layer_range: [0, 2]}]
  - sources: [{model: models/y, layer_range: [1, 2], parameters: {scale: 0.5}}]
""",
)


def _aligned(n_sources: int) -> ModelSpace:
    names = ("model.embed_tokens.weight", *(f"model.layers.{i}.mlp.weight" for i in (0, 1)))
    specs = {name: TensorSpec(name, "F32", (4, 4)) for name in names}
    sources = [f"s{i}" for i in range(n_sources)]
    return align(
        [SourceHeader(s, "", specs, {name: s + name for name in names}) for s in sources],
        has_base=False,
    )


def _mergekit(place: Path) -> Reader:
    path = place / "merge.yaml"
    spaces = {n: _aligned(n) for n in (2, 3, 4)}

    def read(data: bytes) -> None:
        path.write_bytes(data)
        if read_slices(path) is None:
            plan = read_mergekit(path)
            n_sources = len(plan.models) + (plan.base_model is not None)
            if n_sources in spaces:
                plan.recipe(spaces[n_sources])

    return read


TARGETS: Mapping[str, Target] = {
    "safetensors": Target(25, _safetensors, _weight_files, mutated_safetensors),
    "model_index": Target(
        5,
        _model_folder("model.safetensors.index.json"),
        lambda: [json.dumps(_INDEX).encode()],
        mutated_json,
    ),
    "model_config": Target(
        5, _model_folder("config.json"), lambda: [json.dumps(_CONFIG_JSON).encode()], mutated_json
    ),
    "journal": Target(15, _journal, _journals, mutated_journal),
    "run_results": Target(3, _run_results, _journals, mutated_journal),
    "salvage": Target(3, _salvage, _journals, mutated_journal),
    "recipe": Target(
        25,
        _recipe,
        lambda: [json.dumps(r.to_json()).encode() for r in (*plain_recipes(), descendant())],
        mutated_json,
    ),
    "merge_json": Target(5, _merge_file(".json"), _merge_jsons, mutated_json),
    "config": Target(12, _config, _configs_json, mutated_json),
    "config_yaml": Target(2, _config_yaml, _configs_yaml, mutated_yaml),
    "check": Target(1, _check, _configs_json, mutated_json),
    "mergekit": Target(2, _mergekit, lambda: _MERGEKIT, mutated_yaml),
}

# A model id in a mutated config must not reach the network.
os.environ["HF_HUB_OFFLINE"] = "1"
