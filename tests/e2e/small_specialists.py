"""Small language models that can do something: a base, and two experts trained in seconds.

The base knows a little of both skills, one expert adds, the other turns two letters round.
Run as a program it writes ``models/`` and ``data/`` into the folder named, else the current one.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.evaluation.tiny_models import DECODER, byte_tokenizer

LETTERS = "abcdefghijklmnopqrst"
SIZES = {"hidden_size": 48, "intermediate_size": 96, "num_key_value_heads": 4, "head_dim": 12}
BASE_STEPS, EXPERT_STEPS, BATCH = 120, 100, 64


def examples(skill: str) -> list[dict[str, object]]:
    """Return 200 prompts of a skill with four options each."""
    rng = np.random.default_rng(len(skill))
    if skill == "maths":
        facts = [(f"{a}+{b}=", str(a + b)) for a in range(20) for b in range(10)]
    else:
        pairs = [a + b for a in LETTERS for b in LETTERS if a != b]
        facts = [(f"{pair} back is ", pair[::-1]) for pair in rng.permutation(pairs)[:200]]
    rows = []
    for index in rng.permutation(len(facts)):
        prompt, answer = facts[index]
        wrong = list(dict.fromkeys(a for _, a in facts if a != answer and len(a) == len(answer)))
        options = [answer, *(str(word) for word in rng.choice(wrong, 3, replace=False))]
        order = rng.permutation(4)
        gold = int(np.flatnonzero(order == 0)[0])
        rows.append({"prompt": prompt, "options": [options[i] for i in order], "gold": gold})
    return rows


def build(folder: Path) -> None:
    """Train and save ``models/base``, ``models/maths``, ``models/letters`` and their examples."""
    tokenizer = byte_tokenizer()
    data = {skill: examples(skill) for skill in ("maths", "letters")}
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for skill, rows in data.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "data" / f"{skill}.jsonl").write_text(text)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = LlamaForCausalLM(LlamaConfig(**(DECODER | SIZES)))
        train(base, tokenizer, data["maths"] + data["letters"], BASE_STEPS, 3e-3)
        models = {"base": base}
        for skill, rows in data.items():
            models[skill] = copy.deepcopy(base)
            train(models[skill], tokenizer, rows, EXPERT_STEPS, 1e-3)
    for name, model in models.items():
        model.save_pretrained(folder / "models" / name)
        tokenizer.save_pretrained(folder / "models" / name)


def train(model, tokenizer, rows, steps: int, rate: float) -> None:
    """Teach a model the right answers."""
    texts = [row["prompt"] + row["options"][row["gold"]] for row in rows]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    order = np.random.default_rng(1)
    model.train()
    for _ in range(steps):
        chosen = torch.from_numpy(order.choice(len(texts), BATCH))
        loss = model(
            input_ids=batch["input_ids"][chosen],
            attention_mask=batch["attention_mask"][chosen],
            labels=labels[chosen],
        ).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


if __name__ == "__main__":
    build(Path(*sys.argv[1:2]))
