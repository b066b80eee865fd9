"""Tiny real models, the command line in this process, and merges computed anew from the files."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from evomerge.cli.main import run as run_cli
from tests.evaluation import tiny_models
from tests.evaluation.tiny_models import CAUSAL, byte_tokenizer

SMALL = {
    "vocab_size": tiny_models.VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
TEXTS = (
    "the cat sat on the mat",
    "one and one are two",
    "rain falls on the hills",
    "a list of small words",
    "she sells sea shells",
    "what is the time now",
)


@dataclass(frozen=True)
class Said:
    """What a command line printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def cli(*arguments: object, expect: int = 0) -> Said:
    """Run the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        patch.object(sys, "argv", ["evomerge", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            run_cli()
        except SystemExit as stop:
            code = int(stop.code or 0)
    said = Said(code, out.getvalue(), err.getvalue())
    assert code == expect, f"exit code {code}\n{said.out}\n{said.err}"
    return said


# ------------------------------------------------------------------------------------ models


def perturbed(model: Any, seed: int, scale: float = 0.1) -> Any:
    """Return a copy with seeded noise on every parameter, once where parameters are tied."""
    made = copy.deepcopy(model)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in dict.fromkeys(made.parameters()):
            delta = torch.randn(parameter.shape, generator=noise) * scale
            parameter.copy_(parameter.float() + delta)
    return made


def save(model: Any, folder: Path, *, tokenizer: bool = True, **options: Any) -> Path:
    """Save a model, with the byte tokenizer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, **options)
    if tokenizer:
        byte_tokenizer().save_pretrained(folder)
    return folder


def save_family(
    folder: Path,
    model: Any,
    *,
    experts: Sequence[str] = ("x", "y"),
    tokenizer: bool = True,
    dtype: torch.dtype | None = None,
    expert_dtype: torch.dtype | None = None,
    **options: Any,
) -> Path:
    """Save `base` and perturbed copies of it."""
    made = {"base": model, **{name: perturbed(model, i + 1) for i, name in enumerate(experts)}}
    for name, item in made.items():
        wanted = expert_dtype if name != "base" and expert_dtype is not None else dtype
        if wanted is not None:
            item = item.to(wanted)
        save(item, folder / name, tokenizer=tokenizer, **options)
    return folder


def llama(seed: int = 0, **changes: Any) -> Any:
    """Return a Llama of about 10,000 parameters."""
    return tiny_models.make("LlamaForCausalLM", "LlamaConfig", SMALL | changes, seed=seed)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows))
    return path


# ------------------------------------------------------------------------------------ configs


def text_task(folder: Path, name: str = "text", texts: Sequence[str] = TEXTS) -> dict[str, Any]:
    """Return a perplexity task over `texts`."""
    path = write_rows(folder / f"{name}.jsonl", [{"text": text} for text in texts])
    return {"name": name, "evaluator": {"name": "perplexity", "examples": str(path)}}


def config(folder: Path, tasks: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """Return a config over `base`, `x` and `y` of a folder."""
    body: dict[str, Any] = {
        "name": "run",
        "seed": 3,
        "base_model": str(folder / "base"),
        "models": [str(folder / "x"), str(folder / "y")],
        "merge": {"name": "task_arithmetic", "groups": "layer"},
        "algorithm": {"name": "random"},
        "tasks": tasks,
        "budget": {"evaluations": 12},
        "search": {"look_ahead": 3},
        "runtime": {"workers": 1, "threads": 1, "device": "cpu"},
    }
    body |= changes
    return {key: value for key, value in body.items() if value is not None}


@dataclass(frozen=True)
class Exported:
    """A model that a search found: its folder, its recipe, what the command line said."""

    folder: Path
    row: Mapping[str, Any]
    recipe: Mapping[str, Any]
    run: Path
    facts: Mapping[str, Any]

    def param(self, name: str) -> np.ndarray:
        return np.array(self.recipe["params"][name])


def search(work: Path, body: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Check and search; return the run folder and what `check` said."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / "config.yaml"
    file.write_text(yaml.safe_dump(dict(body), sort_keys=False))
    facts = cli("check", file, "--json").json
    run = work / "run"
    done = cli("search", file, "--run", run, "--json").json
    assert done["failed"] == 0, (run / "events.log").read_text()[:3000]
    assert done["evaluations"] == body["budget"]["evaluations"]
    return run, facts


def export(work: Path, run: Path, facts: Mapping[str, Any], pick: str = "knee") -> Exported:
    """Export one candidate with `--verify`."""
    said = cli("front", run, "--json").json
    assert said, "an empty front"
    out = work / f"export-{re.sub('[^a-z0-9]+', '-', pick)}"
    row = cli("export", run, "--pick", pick, "--out", out, "--verify", "--json").json[0]
    assert row["rescored_examples"] == sum(facts["tasks"].values())
    recipe = json.loads((out / "recipe.json").read_text())
    return Exported(out, row, recipe["recipe"], run, facts)


def search_and_export(work: Path, body: Mapping[str, Any], pick: str = "knee") -> Exported:
    """Check, search, list the front, export and verify."""
    run, facts = search(work, body)
    return export(work, run, facts, pick)


def searched_candidate(run: Path, operator: str) -> str:
    """Return a `--pick` text for the best candidate of the front or run that is no founder."""
    asked = {e["id"]: e for e in journal(run) if e["kind"] == "asked"}
    told = [e for e in journal(run) if e["kind"] == "told"]
    own = [e for e in told if not asked[e["id"]]["origin"].startswith("founder")]
    own = [e for e in own if asked[e["id"]]["recipe"]["operator"] == operator]
    best = max(own, key=lambda e: sum(e["objectives"]))
    return f"candidate:{best['id']}"


def journal(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["event"] for line in (run / "journal.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------------------- merges, anew


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of a folder's safetensors files."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as stored:
            found |= {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    return found


def layer_row(name: str, n_rows: int) -> int:
    """Return the row of `groups: layer` for a tensor: embeddings, layers, final norm and head."""
    found = re.search(r"(?:layers?|h)\.(\d+)\.", name)
    if found:
        return 1 + int(found.group(1))
    is_first = "embed" in name or "wte" in name or "wpe" in name
    return 0 if is_first else n_rows - 1


Formula = Callable[[str, list[Tensor]], Tensor]


def dense_merge(sources: Sequence[Path], formula: Formula) -> dict[str, Tensor]:
    """Return formula(name, float64 tensors of all sources) in the first source's dtypes."""
    opened = [tensors_of(source) for source in sources]
    merged = {}
    for name, first in opened[0].items():
        values = [tensors[name].double() for tensors in opened]
        merged[name] = formula(name, values).to(first.dtype)
    return merged


def task_vectors(exported: Exported) -> Formula:
    """Return the formula of task arithmetic over `groups: layer`, or of a linear founder."""
    weights = exported.param("weights")
    if exported.recipe["operator"] == "linear":
        assert weights.shape[0] == 1
        return lambda _, values: sum(w * v for w, v in zip(weights[0], values, strict=True))
    scale = exported.param("lambda_")

    def formula(name: str, values: list[Tensor]) -> Tensor:
        row = layer_row(name, len(weights)) if len(weights) > 1 else 0
        base, *experts = values
        deltas = sum(w * (e - base) for w, e in zip(weights[row], experts, strict=True))
        return base + scale[row] * deltas

    return formula


def folder_of(donor: Path, tensors: Mapping[str, Tensor], out: Path) -> Path:
    """Return a model folder with the donor's files but these weights."""
    ignore = shutil.ignore_patterns("*.safetensors", "*.index.json")
    shutil.copytree(donor, out, ignore=ignore)
    save_file({n: t.contiguous().clone() for n, t in tensors.items()}, out / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    return out


def batch_for(auto_class: str, channels: int = 1, side: int = 8) -> dict[str, Tensor]:
    """Return inputs for a model."""
    if auto_class == "AutoModelForImageClassification":
        noise = torch.Generator().manual_seed(9)
        return {"pixel_values": torch.randn(3, channels, side, side, generator=noise)}
    ids = torch.randint(0, 256, (3, 12), generator=torch.Generator().manual_seed(9))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def logits_of(folder: Path, auto_class: str = CAUSAL, batch: dict[str, Tensor] | None = None):
    """Return the float32 logits of a folder loaded with transformers, as any user would."""
    model, info = getattr(transformers, auto_class).from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"], info["missing_keys"]
    assert not info["unexpected_keys"], info["unexpected_keys"]
    model.eval()
    inputs = batch_for(auto_class) if batch is None else batch
    inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    with torch.inference_mode():
        return model(**inputs).logits.float()


def assert_same_model(
    exported: Path,
    tensors: Mapping[str, Tensor],
    donor: Path,
    work: Path,
    *,
    auto_class: str = CAUSAL,
    tolerance: float = 2e-5,
) -> None:
    """Check an exported folder against tensors computed in the test: weights, then logits."""
    written = tensors_of(exported)
    assert set(written) == set(tensors)
    for name, tensor in tensors.items():
        assert written[name].dtype == tensor.dtype, name
        torch.testing.assert_close(
            written[name].double(), tensor.double(), rtol=tolerance, atol=tolerance, msg=name
        )
    reference = folder_of(donor, tensors, work / "reference")
    torch.testing.assert_close(
        logits_of(exported, auto_class),
        logits_of(reference, auto_class),
        rtol=50 * tolerance,
        atol=50 * tolerance,
    )
