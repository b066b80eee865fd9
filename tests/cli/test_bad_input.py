"""Broken configs, models and data: one line that names the fault, and nothing else happens.

Every case is a finished run's config with one thing broken. `check` and `search` must refuse it
with the same line and the documented exit code, before a run folder exists; a search aimed at
the finished run must leave it byte for byte as it is.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tests.cli.command import Place, assert_one_line, read_parts, tree, write_parts

Break = Callable[[Place], None]


@dataclass(frozen=True)
class Case:
    """One broken input: how to break it, and what the line must say."""

    id: str
    breaks: Break
    says: tuple[str, ...]
    code: int = 2


def put(key: str, value: Any) -> Break:
    return lambda place: place.put(key, value)


def drop(key: str) -> Break:
    return lambda place: place.config.pop(key)


def rename(key: str, wrong: str) -> Break:
    return lambda place: place.rename(key, wrong)


def text(content: str | bytes) -> Break:
    return lambda place: setattr(place, "text", content)


def added(line: str) -> Break:
    """Append a line to the YAML of a config that works."""

    def breaks(place: Place) -> None:
        place.write()
        place.text = (place.folder / "c.yaml").read_text() + line + "\n"

    return breaks


def both(*steps: Break) -> Break:
    return lambda place: [step(place) for step in steps][-1]


def merge(**keys: Any) -> Break:
    return put("merge", keys)


def evaluator(**keys: Any) -> Break:
    return lambda place: place.put("tasks", [{"name": "up", "evaluator": keys}])


CONFIG = [
    Case("empty-file", text(""), ("c.yaml: is empty", "expected a mapping")),
    Case("list-for-a-mapping", text("- 1\n- 2\n"), ("c.yaml: holds a list",)),
    Case("plain-text", text("hello"), ("c.yaml: holds a str",)),
    Case("binary-file", text(b"\x00\xff\xfe\x80" * 40), ("c.yaml: is not UTF-8",)),
    Case("control-characters", text("name: \x01\n"), ("c.yaml: not valid YAML",)),
    Case("syntax-error", text("name: tiny\nmerge: [\n"), ("c.yaml: line 3",)),
    Case("tab-indent", text("name: tiny\nmerge:\n\tname: ties\n"), ("c.yaml: line 3",)),
    Case("too-large", text("#" * (1 << 20) + "\n"), ("c.yaml", "a config is at most 1048576")),
    Case("deeply-nested", text("a: " + "[" * 5000), ("c.yaml: ",)),
    Case("duplicate-key", added("seed: 6"), ("c.yaml: line", "key 'seed' is given twice")),
    Case(
        "anchors",
        text("name: &n tiny\nmerge: *n\n"),
        ("c.yaml: line 2", "anchors and aliases are not supported"),
    ),
    Case(
        "python-tag",
        text("name: !!python/object/apply:os.system ['touch hacked']\n"),
        ("c.yaml: line 1", "python/object/apply"),
    ),
    Case("unknown-top-level-key", put("objectvies", []), ("'objectvies'", "mean 'objectives'?")),
    Case("misspelt-needed-key", rename("tasks", "taks"), ("'taks'", "Did you mean 'tasks'?")),
    Case("missing-key", drop("budget"), ("c.yaml: key 'budget' is missing",)),
    Case("unknown-budget-key", put("budget.second", 5), ("'budget.second'", "mean 'seconds'?")),
    Case(
        "misspelt-budget-key",
        rename("budget.evaluations", "evaluatons"),
        ("'budget.evaluatons'", "mean 'evaluations'?"),
    ),
    Case("unknown-search-key", put("search.look_ahed", 5), ("'search.look_ahed'", "'look_ahead'?")),
    Case("unknown-runtime-key", put("runtime.wokers", 5), ("'runtime.wokers'", "mean 'workers'?")),
    Case(
        "misspelt-model-key",
        rename("models.1.model", "modle"),
        ("'models.1.modle'", "mean 'model'?"),
    ),
    Case(
        "misspelt-task-key",
        rename("tasks.0.evaluator", "evalutor"),
        ("'tasks.0.evalutor'", "mean 'evaluator'?"),
    ),
    Case("number-for-a-key", put("runtime", {3: 4}), ("c.yaml: runtime", "got 3")),
    Case("name-is-a-number", put("name", 5), ("c.yaml: name", "valid string, got 5")),
    Case("name-is-a-path", put("name", "../escape"), ("c.yaml: name", "got '../escape'")),
    Case("name-is-the-parent-folder", put("name", ".."), ("c.yaml: name", "got '..'")),
    Case("version-2", put("version", 2), ("c.yaml: version", "got 2")),
    Case("seed-is-text", put("seed", "x"), ("c.yaml: seed", "valid integer, got 'x'")),
    Case("negative-seed", put("seed", -1), ("c.yaml: seed", "greater than or equal to 0, got -1")),
    Case("no-models", put("models", []), ("c.yaml: models", "at least 1 item")),
    Case("models-is-a-mapping", put("models", {"a": "b"}), ("c.yaml: models", "valid list")),
    Case("model-is-a-number", put("models.0", 7), ("c.yaml: models.0", "got 7")),
    Case("no-tasks", put("tasks", []), ("c.yaml: tasks", "at least 1 item")),
    Case("budget-is-a-number", put("budget", 7), ("c.yaml: budget", "got 7")),
    Case("budget-is-text", put("budget.evaluations", "many"), ("budget.evaluations", "'many'")),
    Case("budget-is-a-fraction", put("budget.evaluations", 2.5), ("budget.evaluations", "2.5")),
    Case("negative-budget", put("budget.evaluations", -5), ("budget.evaluations", "got -5")),
    Case("zero-evaluations", put("budget.evaluations", 0), ("budget.evaluations", "got 0")),
    Case("zero-seconds", put("budget.seconds", 0), ("budget.seconds", "greater than 0, got 0")),
    Case("seconds-not-finite", put("budget.seconds", math.inf), ("budget.seconds", "finite")),
    Case("huge-number", put("merge.lambda_", 10**400), ("merge.lambda_ is too large",)),
    Case("zero-look-ahead", put("search.look_ahead", 0), ("search.look_ahead", "got 0")),
    Case(
        "tell-order-typo",
        put("search.tell_order", "askd"),
        ("search.tell_order", "'asked' or 'completed'", "'askd'"),
    ),
    Case("founders-typo", put("search.founders", "non"), ("search.founders", "'none'", "'non'")),
    Case("executor-typo", put("runtime.executor", "rai"), ("runtime.executor", "'ray'", "'rai'")),
    Case("device-typo", put("runtime.device", "gpu"), ("runtime.device is 'gpu'", "cpu")),
    Case("device-without-number", put("runtime.device", "cuda:x"), ("runtime.device", "cuda:x")),
    Case("gpus-negative", put("runtime.gpus_per_worker", -1), ("runtime.gpus_per_worker", "-1")),
]

ALGORITHM = [
    Case("algorithm-typo", put("algorithm", "m2n3"), ("algorithm.name: 'm2n3'", "mean 'm2n2'?")),
    Case("algorithm-unnamed", put("algorithm", {}), ("algorithm: needs a `name:`", "nsga2")),
    Case(
        "algorithm-key-typo",
        put("algorithm", {"name": "cma_es", "num_worker": 2}),
        ("algorithm.num_worker is not a parameter of 'cma_es'", "Did you mean"),
    ),
    Case(
        "algorithm-value-type",
        both(
            merge(name="linear", normalize=False),
            put("algorithm", {"name": "m2n2", "population_size": "big"}),
        ),
        ("algorithm.population_size", "'big'"),
    ),
    Case(
        "algorithm-value-range",
        both(
            merge(name="linear", normalize=False),
            put("algorithm", {"name": "m2n2", "population_size": -3}),
        ),
        ("algorithm", "population_size is -3"),
    ),
    Case(
        "m2n2-with-ties",
        both(put("algorithm", "m2n2"), merge(name="ties")),
        ("merge.name: 'm2n2'", "linear", "'ties'"),
    ),
    Case(
        "nevergrad-optimizer-typo",
        put("algorithm", {"name": "nevergrad", "optimizer": "OnePlusOn"}),
        ("algorithm", "'OnePlusOn'", "Did you mean 'OnePlusOne'?"),
    ),
    Case(
        "optuna-sampler-typo",
        put("algorithm", {"name": "optuna", "sampler": "TPESampl"}),
        ("algorithm", "'TPESampl'", "Did you mean 'TPESampler'?"),
    ),
    Case(
        "nothing-to-search",
        merge(name="task_arithmetic", weights=0.5),
        ("algorithm 'random' has nothing to search", "give it a range"),
    ),
]

MERGE = [
    Case("merge-typo", put("merge", "tie"), ("merge.name: 'tie'", "Did you mean 'ties'?")),
    Case("merge-unnamed", put("merge", {"density": 1}), ("merge: needs a `name:`", "dare_ties")),
    Case(
        "merge-key-typo",
        merge(name="ties", desnity=0.3),
        ("merge.desnity is not a parameter of 'ties'", "Did you mean 'density'?"),
    ),
    Case("merge-value-illegal", merge(name="ties", density=1.5), ("merge.density is 1.5", "1")),
    Case(
        "merge-range-illegal",
        merge(name="ties", density=[0.5, 2]),
        ("merge.density is 2", "most 1"),
    ),
    Case(
        "merge-range-reversed",
        merge(name="ties", density=[0.9, 0.1]),
        ("merge.density: the range [0.9, 0.1] is empty",),
    ),
    Case(
        "merge-range-nan",
        merge(name="ties", density=[math.nan, 1.0]),
        ("merge.density.0 is nan", "finite"),
    ),
    Case("merge-value-infinite", merge(name="ties", lambda_=math.inf), ("merge.lambda_", "inf")),
    Case(
        "merge-range-of-three",
        merge(name="ties", density=[0.1, 0.5, 0.9]),
        ("merge.density: a range is [low, high]", "values"),
    ),
    Case(
        "merge-initial-outside",
        merge(name="ties", density={"low": 0.1, "high": 0.5, "initial": 0.9}),
        ("merge.density: initial 0.9 is outside [0.1, 0.5]",),
    ),
    Case(
        "merge-range-key-typo",
        merge(name="ties", density={"low": 0.1, "hihg": 0.5}),
        ("merge.density: expected low, high and perhaps initial", "hihg"),
    ),
    Case(
        "merge-wrong-number-of-values",
        merge(name="ties", weights={"values": [0.3, 0.3, 0.4]}),
        ("merge.weights: 3 values for 2 models",),
    ),
    Case("merge-word-typo", merge(name="ties", density="serch"), ("merge.density", "'serch'")),
    Case("merge-null", merge(name="ties", density=None), ("merge.density is None", "'search'")),
    Case(
        "merge-setting-typo",
        merge(name="ties", compat="papr"),
        ("merge.compat", "'paper'", "'papr'"),
    ),
    Case(
        "merge-setting-type",
        merge(name="task_arithmetic", normalize="perhaps"),
        ("merge.normalize", "'perhaps'"),
    ),
    Case("grouping-typo", put("merge.groups", "layers"), ("merge.groups: 'layers'", "'layer'?")),
    Case("grouping-zero-blocks", put("merge.groups", "block:0"), ("'block:0'", "block:N")),
    Case(
        "slerp-with-three-experts",
        both(
            merge(name="slerp"),
            put("models", [{"name": n, "model": f"models/{n[0]}"} for n in ("x", "y", "x2")]),
        ),
        ("merge.name: 'slerp' merges exactly 2 models, 3 are given",),
    ),
    Case(
        "task-arithmetic-without-base",
        drop("base_model"),
        ("merge.name: 'task_arithmetic' works on task vectors; give a `base_model:`",),
    ),
]

TASKS = [
    Case("evaluator-typo", evaluator(name="pyton"), ("tasks.0.evaluator.name", "'python'?")),
    Case("evaluator-unnamed", evaluator(n=3), ("tasks.0.evaluator: needs a `name:`", "python")),
    Case(
        "evaluator-key-typo",
        put("tasks.1.evaluator.arguements", {}),
        ("tasks.1.evaluator.arguements", "Did you mean 'arguments'?"),
    ),
    Case(
        "evaluator-key-missing",
        evaluator(name="python", function="a:b"),
        ("tasks.0.evaluator.n is missing; 'python' needs it",),
    ),
    Case("evaluator-no-examples", put("tasks.0.evaluator.n", 0), ("tasks.0.evaluator", "n is 0")),
    Case(
        "function-without-colon",
        put("tasks.0.evaluator.function", "closeness"),
        ("tasks.0.evaluator", "'closeness'", '"module:function"'),
    ),
    Case(
        "function-module-missing",
        put("tasks.0.evaluator.function", "no_such_scorer:f"),
        ("cannot import 'no_such_scorer'", "Set `path:`"),
    ),
    Case(
        "function-missing",
        put("tasks.0.evaluator.function", "tiny_scorer:closenes"),
        ("'tiny_scorer' has no function 'closenes'", "Did you mean 'closeness'?"),
    ),
    Case(
        "function-folder-missing",
        put("tasks.0.evaluator.path", "scorers"),
        ("python: path", "scorers is not a folder"),
    ),
    Case(
        "auto-class-typo",
        put("tasks.0.evaluator.auto_class", "AutoModelForImageClasification"),
        ("auto_class", "Did you mean 'AutoModelForImageClassification'?"),
    ),
    Case("task-named-twice", put("tasks.1.name", "up"), ("tasks: the name 'up' is given twice",)),
    Case("task-name-with-space", put("tasks.1.name", "a b"), ("tasks.1.name", "'a b'")),
    Case(
        "held-out-key-typo",
        put("tasks.0.held_out", {"argument": {}}),
        ("tasks.0.held_out.argument", "Did you mean 'arguments'?"),
    ),
    Case(
        "objective-of-unknown-task",
        put("objectives", [{"name": "o", "tasks": {"upp": 1.0}}]),
        ("objectives.o: 'upp' is not a task", "Did you mean 'up'?"),
    ),
    Case(
        "objective-negative-weight",
        put("objectives", [{"name": "o", "tasks": {"up": -1.0}}]),
        ("objective 'o'", "must be positive"),
    ),
    Case(
        "objective-nan-weight",
        put("objectives", [{"name": "o", "tasks": {"up": math.nan}}]),
        ("objectives.0.tasks.up is nan",),
    ),
    Case(
        "objective-named-twice",
        put("objectives", [{"name": "o", "tasks": {t: 1.0}} for t in ("up", "down")]),
        ("objectives: names repeat", "'o'"),
    ),
    Case(
        "objective-without-tasks",
        put("objectives", [{"name": "o", "tasks": {}}]),
        ("objectives.0.tasks", "at least 1"),
    ),
    Case(
        "metric-typo",
        evaluator(name="classification", examples="e.npz", metric="acuracy"),
        ("tasks.0.evaluator", "metric is 'acuracy'", "Did you mean 'accuracy'?"),
    ),
    Case(
        "rows-reversed",
        evaluator(name="classification", examples="e.npz", rows=[5, 2]),
        ("rows is [5, 2]", "start < stop"),
    ),
    Case(
        "rows-empty",
        evaluator(name="classification", examples="e.npz", rows=[5, 5]),
        ("rows is [5, 5]", "start < stop"),
    ),
    Case(
        "examples-of-unknown-kind",
        evaluator(name="classification", examples="e.csv"),
        ("examples is", "e.csv", ".jsonl"),
    ),
    Case("batch-size-zero", evaluator(name="perplexity", examples="e.jsonl", batch_size=0), ("0",)),
    Case(
        "normalisation-typo",
        evaluator(name="multiple_choice", examples="e.jsonl", normalise="tokens"),
        ("normalise is 'tokens'", "Did you mean 'token'?"),
    ),
    Case(
        "argument-nan",
        put("tasks.0.evaluator.arguments.target", math.nan),
        ("tasks.0.evaluator.arguments.target is nan", "finite"),
    ),
]


# --------------------------------------------------------------------------------- models


def config_json(**changes: Any) -> Break:
    def breaks(place: Place) -> None:
        path = place.model("x") / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return breaks


def raw_config_json(content: str) -> Break:
    return lambda place: (place.model("x") / "config.json").write_text(content)


def remove(name: str) -> Break:
    return lambda place: (place.model("x") / name).unlink()


def pickle_only(place: Place) -> None:
    place.weights("x").rename(place.model("x") / "pytorch_model.bin")


def truncated(place: Place) -> None:
    os.truncate(place.weights("x"), place.weights("x").stat().st_size - 100)


def truncated_header(place: Place) -> None:
    os.truncate(place.weights("x"), 200)


def header_bomb(place: Place) -> None:
    place.weights("x").write_bytes((2**60).to_bytes(8, "little") + b"{}")


def edit_header(edit: Callable[[dict], None]) -> Break:
    def breaks(place: Place) -> None:
        header, data = read_parts(place.weights("x"))
        edit(header)
        write_parts(place.weights("x"), header, data)

    return breaks


def overlap(header: dict) -> None:
    second = sorted(
        (name for name in header if name != "__metadata__"),
        key=lambda name: header[name]["data_offsets"],
    )[1]
    begin, end = header[second]["data_offsets"]
    header[second]["data_offsets"] = [begin - 4, end - 4]


NORM = "vit.layernorm.weight"


def edit_tensor(
    edit: Callable[[np.ndarray], np.ndarray], name: str = NORM, dtype: str = ""
) -> Break:
    """Change one float32 tensor of x; every other one keeps its bytes."""

    def breaks(place: Place) -> None:
        header, data = read_parts(place.weights("x"))
        body, cursor = b"", 0
        names = [key for key in header if key != "__metadata__"]
        for key in sorted(names, key=lambda item: header[item]["data_offsets"]):
            begin, end = header[key]["data_offsets"]
            part = data[begin:end]
            if key == name:
                changed = edit(np.frombuffer(part, "<f4").reshape(header[key]["shape"]).copy())
                part = changed.tobytes()
                header[key]["shape"] = list(changed.shape)
                header[key]["dtype"] = dtype or "F32"
            header[key]["data_offsets"] = [cursor, cursor + len(part)]
            cursor += len(part)
            body += part
        write_parts(place.weights("x"), header, body)

    return breaks


def poison(value: float) -> Break:
    def edit(array: np.ndarray) -> np.ndarray:
        array.flat[2] = value
        return array

    return edit_tensor(edit)


def without_tensor(place: Place) -> None:
    header, _ = read_parts(place.weights("x"))
    name = min(key for key in header if "layer.1." in key and key.endswith("bias"))
    edit_tensor(lambda a: a[:0], name)(place)
    header, data = read_parts(place.weights("x"))
    del header[name]
    write_parts(place.weights("x"), header, data)


def sharded(edit: Callable[[Place, dict], None]) -> Break:
    """Turn x into two shards with an index, and break that."""

    def breaks(place: Place) -> None:
        header, data = read_parts(place.weights("x"))
        header.pop("__metadata__", None)
        names = sorted(header, key=lambda key: header[key]["data_offsets"])
        place.weights("x").unlink()
        weight_map = {}
        for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
            shard = f"model-0000{number}-of-00002.safetensors"
            body, entries = b"", {}
            for key in part:
                begin, end = header[key]["data_offsets"]
                entries[key] = header[key] | {"data_offsets": [len(body), len(body) + end - begin]}
                body += data[begin:end]
                weight_map[key] = shard
            write_parts(place.model("x") / shard, entries, body)
        index = {"metadata": {}, "weight_map": weight_map}
        edit(place, index)
        (place.model("x") / "model.safetensors.index.json").write_text(json.dumps(index))

    return breaks


def first_shard(shard: str) -> Break:
    def edit(place: Place, index: dict) -> None:
        shutil.copy(next(place.model("x").glob("*-00001-of*")), place.folder / "loot.safetensors")
        for name, where in index["weight_map"].items():
            if "-00001-" in where:
                index["weight_map"][name] = shard.format(folder=place.folder)

    return sharded(edit)


def linked_shard(place: Place, index: dict) -> None:
    shard = next(place.model("x").glob("*-00001-of*"))
    shard.rename(place.folder / "outside.safetensors")
    shard.symlink_to(place.folder / "outside.safetensors")


def lost_shard(place: Place, index: dict) -> None:
    next(place.model("x").glob("*-00002-of*")).unlink()


def doubled_tensor(place: Place, index: dict) -> None:
    one, two = sorted(place.model("x").glob("*-of-*"))
    shutil.copy(one, two)


def left_out_tensor(place: Place, index: dict) -> None:
    index["weight_map"].pop(sorted(index["weight_map"])[0])


def other_architecture(place: Place) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11, n_positions=8)
    shutil.rmtree(place.model("x"))
    GPT2LMHeadModel(config).save_pretrained(place.model("x"))


MODELS = [
    Case(
        "base-missing", put("base_model", "models/bse"), ("models/bse", "Did you mean 'base'?"), 3
    ),
    Case("model-missing", put("models.0.model", "/nowhere/at/all"), ("/nowhere/at/all",), 3),
    Case("model-path-too-long", put("models.0.model", "x" * 5000), ("hub id",), 3),
    Case("hub-id-offline", put("models.0.model", "org/model"), ("org/model", "HF_HUB_OFFLINE"), 3),
    Case(
        "revision-of-a-local-folder",
        put("models.0.revision", "main"),
        ("models/x: revision 'main'", "local path"),
        3,
    ),
    Case("lora-missing", put("models.0.lora", "no-adapter"), ("'no-adapter'",), 3),
    Case("lora-is-a-model", put("models.0.lora", "models/y"), ("models/y", "adapter_model"), 3),
    Case(
        "one-model",
        both(drop("base_model"), put("models", ["models/x"]), put("merge", "linear")),
        ("at least two models", "`models:`"),
        3,
    ),
    Case("same-model-twice", put("models", ["models/base"]), ("nothing to merge", "base"), 3),
    Case("no-weights", remove("model.safetensors"), ("models/x", "neither model.safetensors"), 3),
    Case("pickled-weights", pickle_only, ("models/x", "pytorch_model.bin", "save_pretrained"), 3),
    Case("model-is-a-data-file", put("models.0.model", "c.yaml"), ("c.yaml", "model folder"), 3),
    Case("config-json-missing", remove("config.json"), ("models/x: has no config.json",), 3),
    Case("config-json-broken", raw_config_json("{"), ("models/x/config.json", "not valid JSON"), 3),
    Case("config-json-list", raw_config_json("[]"), ("config.json", "expected a JSON object"), 3),
    Case("config-json-huge", raw_config_json(" " * 1_000_001), ("config.json", "1,000,000"), 3),
    Case("config-json-deep", raw_config_json("[" * 10**5), ("config.json", "JSON"), 3),
    Case(
        "config-json-repeats-a-key",
        raw_config_json('{"a": 1, "a": 2}'),
        ("config.json", "key 'a' appears twice"),
        3,
    ),
    Case(
        "quantised",
        config_json(quantization_config={"bits": 4}),
        ("config.json: quantization_config is set", "unquantised"),
        3,
    ),
    Case(
        "auto-map",
        config_json(auto_map={"AutoModel": "evil.Model"}),
        ("config.json: auto_map", "trust_remote_code"),
        3,
    ),
    Case("truncated", truncated, ("models/x/model.safetensors", "cut short"), 3),
    Case("truncated-header", truncated_header, ("models/x/model.safetensors", "cut short"), 3),
    Case(
        "empty-weights",
        lambda place: place.weights("x").write_bytes(b""),
        ("model.safetensors: only 0 bytes",),
        3,
    ),
    Case("header-bomb", header_bomb, ("model.safetensors: header of 1,152,921,504", "hostile"), 3),
    Case("overlapping-tensors", edit_header(overlap), ("x/model.safetensors", "overlaps"), 3),
    Case(
        "unknown-dtype",
        edit_header(lambda header: header[NORM].update(dtype="F2")),
        (NORM, "dtype 'F2' is not supported"),
        3,
    ),
    Case(
        "tensor-name-traversal",
        edit_header(lambda header: header.update({"../../x": header.pop(NORM)})),
        ("'../../x'", "letters"),
        3,
    ),
    Case("nan-weight", poison(math.nan), ("x/model.safetensors", NORM, "nan at element 2"), 3),
    Case("infinite-weight", poison(-math.inf), ("x/model.safetensors", NORM, "-inf at"), 3),
    Case(
        "shape-mismatch",
        edit_tensor(lambda array: array[:6]),
        (NORM, "(8,) in 'base'", "(6,) in 'x'"),
        3,
    ),
    Case("missing-tensor", without_tensor, ("bias is missing in 'x'", "fine-tunes of one base"), 3),
    Case(
        "integer-matrix",
        edit_tensor(
            lambda array: array.astype("<i4"),
            "vit.embeddings.patch_embeddings.projection.weight",
            "I32",
        ),
        ("patch_embeddings.projection.weight (I32)", "quantised"),
        3,
    ),
    Case(
        "other-architecture",
        other_architecture,
        ("GPT2LMHeadModel, ViTForImageClassification", "missing in", "; and ", "more"),
        3,
    ),
    Case(
        "shard-traversal",
        first_shard("../loot.safetensors"),
        ("index.json: weight_map", "'../loot.safetensors'", "same folder"),
        3,
    ),
    Case(
        "shard-absolute",
        first_shard("{folder}/loot.safetensors"),
        ("index.json: weight_map", "/loot.safetensors", "same folder"),
        3,
    ),
    Case("shard-link", sharded(linked_shard), ("is a link to", "outside the model folder"), 3),
    Case("shard-missing", sharded(lost_shard), ("-00002-of-00002.safetensors", "cannot be op"), 3),
    Case("shard-twice", sharded(doubled_tensor), ("index.json: tensor", "is in two shards"), 3),
    Case("shard-not-in-index", sharded(left_out_tensor), ("which the index leaves out",), 3),
    Case(
        "index-without-map",
        sharded(lambda place, index: index.update(weight_map=[])),
        ("index.json: weight_map must map tensor names to shards",),
        3,
    ),
]


# ----------------------------------------------------------------------------------- data


def examples(name: str, content: bytes | str | None, **keys: Any) -> Break:
    """Write an examples file and point one classification task at it."""

    def breaks(place: Place) -> None:
        if content is not None:
            data = content.encode() if isinstance(content, str) else content
            (place.folder / name).write_bytes(data)
        evaluator(name="classification", examples=name, **keys)(place)

    return breaks


def images(**arrays: Any) -> Break:
    """Write an npz of images; None leaves an array out."""
    whole = {
        "pixel_values": np.zeros((4, 1, 4, 4), np.float32),
        "labels": np.zeros(4, np.int64),
    }

    def breaks(place: Place) -> None:
        kept = {key: value for key, value in (whole | arrays).items() if value is not None}
        np.savez(place.folder / "e.npz", **kept)
        evaluator(name="classification", examples="e.npz")(place)

    return breaks


ROW = '{"text": "a", "label": 0}\n'
DATA = [
    Case("data-missing", examples("e.jsonl", None), ("e.jsonl", "cannot read the examples"), 3),
    Case("data-is-a-folder", examples("models.npz", None), ("models.npz",), 3),
    Case("data-empty", examples("e.jsonl", ""), ("e.jsonl: is empty",), 3),
    Case("data-blank", examples("e.jsonl", "\n\n"), ("e.jsonl: has no rows",), 3),
    Case("data-not-json", examples("e.jsonl", ROW + "{text}\n"), ("e.jsonl:2: not JSON",), 3),
    Case("data-not-objects", examples("e.jsonl", "[1]\n"), ("e.jsonl:1: a list",), 3),
    Case("data-not-utf8", examples("e.jsonl", b"\xff\xfe"), ("e.jsonl: not UTF-8 at byte 0",), 3),
    Case(
        "data-key-missing",
        examples("e.jsonl", ROW + '{"txt": "a", "label": 0}\n'),
        ("e.jsonl:2: key 'text' is missing", "txt"),
        3,
    ),
    Case(
        "data-label-outside",
        examples("e.jsonl", '{"text": "a", "label": 5}\n', labels=["no", "yes"]),
        ("e.jsonl:1: 'label' is 5, expected 0 to 1",),
        3,
    ),
    Case(
        "data-label-unknown",
        examples("e.jsonl", '{"text": "a", "label": "ye"}\n', labels=["no", "yes"]),
        ("e.jsonl:1: 'label' is 'ye'", "Did you mean 'yes'?"),
        3,
    ),
    Case(
        "data-rows-past-the-end",
        examples("e.jsonl", ROW, rows=[0, 9]),
        ("e.jsonl: `rows: [0, 9]`", "the 1 examples"),
        3,
    ),
    Case("data-not-npz", examples("e.npz", "hello"), ("e.npz: is not an npz file",), 3),
    Case("data-array-missing", images(labels=None), ("e.npz: array 'labels' is missing",), 3),
    Case("data-lengths-differ", images(labels=np.zeros(3, int)), ("arrays differ in length",), 3),
    Case(
        "data-pickled",
        images(labels=np.array([{}, {}, {}, {}], dtype=object)),
        ("e.npz: cannot be read as npz", "allow_pickle"),
        3,
    ),
    Case(
        "data-image-nan",
        images(pixel_values=np.full((4, 1, 4, 4), np.nan, np.float32)),
        ("e.npz: pixel_values of example 0 are not finite",),
        3,
    ),
    Case(
        "data-image-shape",
        images(pixel_values=np.zeros((4, 16), np.float32)),
        ("e.npz: pixel_values is float32 (4, 16), expected float (N, C, H, W)",),
        3,
    ),
    Case(
        "data-label-negative",
        images(labels=np.array([0, 1, -1, 0])),
        ("e.npz: label of example 2 is -1",),
        3,
    ),
    Case(
        "data-held-out-missing",
        both(
            examples("e.jsonl", ROW),
            put("tasks.0.held_out", {"examples": "h.jsonl"}),
        ),
        ("h.jsonl: cannot read the examples",),
        3,
    ),
    Case(
        "data-head-missing",
        examples("e.jsonl", ROW, head="head.safetensors"),
        ("head.safetensors: no such head file",),
        3,
    ),
]

CASES = [*CONFIG, *ALGORITHM, *MERGE, *TASKS, *MODELS, *DATA]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_broken_input_gives_one_line_and_touches_nothing(case, place, evomerge):
    case.breaks(place)
    place.write()
    before = tree(place.folder)
    for verb in (
        ("check", "c.yaml"),
        ("search", "c.yaml", "--run", "new"),
        ("search", "c.yaml", "--json", "--run", "populations/new"),
    ):
        assert_one_line(evomerge(*verb), case.code, case.says)
    over = evomerge("search", "c.yaml", "--run", place.run)
    assert over.code in (2, 3)
    assert len(over.messages) == 1
    assert tree(place.folder) == before
    assert sorted(p.name for p in (place.folder / "populations").iterdir()) == ["tiny"]


def test_the_table_is_large_and_its_ids_are_unique():
    assert len(CASES) >= 75
    assert len({case.id for case in CASES}) == len(CASES)


def test_the_place_itself_is_sound(place, evomerge):
    place.write()
    assert evomerge("check", "c.yaml").code == 0
    assert evomerge("status", "tiny").code == 0
    assert evomerge("search", "c.yaml", "--run", "new").code == 0
