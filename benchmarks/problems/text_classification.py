"""Four small BERTs fine-tuned on real text classification, their base, and one head per task.

Spam, customer reviews, snips intents and clinc150 domains. The heads are trained with the base
and then fixed, so that merging concerns the encoder alone.
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from benchmarks.problems.problem import Part, Problem, Weights, leads
from benchmarks.problems.training import fit, seeded, snapshot, trained_once
from evomerge.core.arrays import ScoreArray
from evomerge.seeding import derive, generator

NAME = "text_classification"
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
TASKS = {"sms_spam": 2, "cr": 2, "snips": 7, "clinc150": 10}
_SEED = 1
_VOCABULARY, _LENGTH, _HIDDEN = 4096, 16, 32
_N_SEARCH, _N_HELD_OUT, _N_BASE = 150, 400, 300


def is_available() -> str:
    """Return why the problem cannot be built, "" when it can."""
    missing = [task for task in TASKS if not (DATA / task / "train.jsonl").exists()]
    return f"needs {', '.join(missing)} in {DATA}" if missing else ""


def build(folder: Path) -> Problem:
    """Return the problem, training its models in `folder` if they are not there."""
    train_data = {task: _read(task, "train") for task in TASKS}
    model = seeded(derive(_SEED, NAME) >> 1, _TextModel)

    def train() -> dict[str, Weights]:
        def learn(tasks: tuple[str, ...], n_rows: int, steps: int, rate: float) -> Weights:
            def loss_of(batch: torch.Tensor) -> torch.Tensor:
                losses = []
                for task in tasks:
                    words, labels = train_data[task]
                    own = batch % min(n_rows, len(labels))
                    losses.append(cross_entropy(model(words[own], task), labels[own]))
                return torch.stack(losses).mean()

            trained = model if len(tasks) > 1 else model.encoder
            fit(list(trained.parameters()), loss_of, 10**6, seed=derive(_SEED, NAME, *tasks),
                steps=steps, rate=rate, batch_size=32)  # fmt: skip
            return snapshot(model)

        model.train()
        models = {"base": learn(tuple(TASKS), _N_BASE, 150, 2e-3)}
        for task in TASKS:
            model.load_state_dict(models["base"])
            models[task] = learn((task,), 10**6, 200, 1e-3)
        return models

    models = trained_once(folder / f"{NAME}.safetensors", train)
    model.eval()
    data: dict[Part, Any] = {"search": {}, "held-out": {}}
    for task in TASKS:
        words, labels = _read(task, "test")
        cut = _N_SEARCH + _N_HELD_OUT
        data["search"][task] = (words[:_N_SEARCH], labels[:_N_SEARCH])
        data["held-out"][task] = (words[_N_SEARCH:cut], labels[_N_SEARCH:cut])

    def score(weights: Weights, part: Part) -> dict[str, ScoreArray]:
        scores = {}
        for task, (words, labels) in data[part].items():
            logits = functional_call(model, dict(weights), (words, task))
            scores[task] = leads(logits, labels).numpy()
        return scores

    return Problem(
        name=NAME,
        summary="base and 4 BERTs of 148,800 weights (spam, reviews, intents, domains); accuracy",
        models={name: models[name] for name in ("base", *TASKS)},
        has_base=True,
        merge={"name": "task_arithmetic", "normalize": False},
        sizes=dict.fromkeys(TASKS, _N_SEARCH),
        score=score,
        is_margin=True,
    )


class _TextModel(torch.nn.Module):
    """A BERT encoder, the mean of its states over the words, and one head per task."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=_VOCABULARY,
            hidden_size=_HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=2 * _HIDDEN,
            max_position_embeddings=_LENGTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.heads = torch.nn.ModuleDict(
            {task: torch.nn.Linear(_HIDDEN, n_labels) for task, n_labels in TASKS.items()}
        )

    def forward(self, words: torch.Tensor, task: str) -> torch.Tensor:
        """Return (N, labels) logits of (N, length) word numbers, 0 for padding."""
        is_word = (words > 0).long()
        states = self.encoder(input_ids=words, attention_mask=is_word).last_hidden_state
        mask = is_word[..., None].float()
        return self.heads[task]((states * mask).sum(1) / mask.sum(1).clamp(min=1.0))


def _read(task: str, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (N, length) hashed words and (N,) labels of a file, in a fixed random order."""
    lines = (DATA / task / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    words = np.zeros((len(rows), _LENGTH), dtype=np.int64)
    for row, body in zip(words, rows, strict=True):
        found = re.findall(r"\w+|[^\w\s]", body["text"].lower())[:_LENGTH]
        row[: len(found)] = [1 + zlib.crc32(word.encode()) % (_VOCABULARY - 1) for word in found]
    labels = np.array([body["label"] for body in rows], dtype=np.int64)
    order = generator(_SEED, NAME, task, part).permutation(len(rows))
    return torch.from_numpy(words[order]), torch.from_numpy(labels[order])
