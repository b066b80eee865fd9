"""Three tiny Llamas that reverse, sort or shift five letters, and their base.

An answer counts when greedy decoding gives it in full; as every earlier letter is then right too,
one forward pass over prompt and answer decides it. Its margin is that of its most doubtful letter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from benchmarks.problems.problem import Part, Problem, Weights, leads
from benchmarks.problems.training import fit, seeded, snapshot, trained_once
from evomerge.core.arrays import IntArray, ScoreArray
from evomerge.seeding import derive, generator

NAME = "language_skills"
SKILLS = ("reverse", "sort", "shift")
_SEED = 1
_LETTERS, _LENGTH = 16, 5
_EQUALS = _LETTERS
_N_SEARCH, _N_HELD_OUT, _N_TRAIN = 128, 256, 20_000


def is_available() -> str:
    """Return "": models and data are made by this file."""
    return ""


def build(folder: Path) -> Problem:
    """Return the problem, training its models in `folder` if they are not there."""
    data = {skill: _sequences(skill) for skill in SKILLS}
    model = seeded(derive(_SEED, NAME) >> 1, _new_model)

    def train() -> dict[str, Weights]:
        def learn(rows: torch.Tensor, name: str, steps: int, rate: float) -> Weights:
            def loss_of(batch: torch.Tensor) -> torch.Tensor:
                logits, answers = _answer_logits(model(rows[batch]).logits, rows[batch])
                return cross_entropy(logits.flatten(0, 1), answers.flatten())

            seed = derive(_SEED, NAME, name)
            fit(list(model.parameters()), loss_of, len(rows), seed=seed, steps=steps, rate=rate,
                batch_size=96)  # fmt: skip
            return snapshot(model)

        model.train()
        own = {skill: rows[_N_SEARCH + _N_HELD_OUT :] for skill, rows in data.items()}
        models = {"base": learn(torch.cat(list(own.values())), "base", 120, 4e-3)}
        for skill in SKILLS:
            model.load_state_dict(models["base"])
            models[skill] = learn(own[skill], skill, 150, 1.5e-3)
        return models

    models = trained_once(folder / f"{NAME}.safetensors", train)
    model.eval()
    parts: dict[Part, slice] = {
        "search": slice(_N_SEARCH),
        "held-out": slice(_N_SEARCH, _N_SEARCH + _N_HELD_OUT),
    }
    rows_of = {
        part: torch.cat([data[skill][rows] for skill in SKILLS]) for part, rows in parts.items()
    }

    def score(weights: Weights, part: Part) -> dict[str, ScoreArray]:
        rows = rows_of[part]
        output = functional_call(model, dict(weights), (rows,))
        logits, answers = _answer_logits(output.logits, rows)
        margins = leads(logits, answers).amin(-1).numpy()
        return dict(zip(SKILLS, np.split(margins, len(SKILLS)), strict=True))

    return Problem(
        name=NAME,
        summary="base and 3 Llamas of 48,240 weights (reverse, sort, shift letters); exact match",
        models={name: models[name] for name in ("base", *SKILLS)},
        has_base=True,
        merge={"name": "task_arithmetic", "normalize": False},
        sizes=dict.fromkeys(SKILLS, _N_SEARCH),
        score=score,
        is_margin=True,
    )


def _new_model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=_LETTERS + 1 + len(SKILLS),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        tie_word_embeddings=False,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def _sequences(skill: str) -> torch.Tensor:
    """Return (N, 12) tokens: skill, five letters, "=", five letters of the answer."""
    n_rows = _N_SEARCH + _N_HELD_OUT + _N_TRAIN
    letters: IntArray = generator(_SEED, NAME, skill).integers(_LETTERS, size=(n_rows, _LENGTH))
    answers = {
        "reverse": letters[:, ::-1],
        "sort": np.sort(letters, axis=1),
        "shift": (letters + 1) % _LETTERS,
    }[skill]
    mark = np.full((n_rows, 1), _EQUALS + 1 + SKILLS.index(skill))
    equals = np.full((n_rows, 1), _EQUALS)
    return torch.from_numpy(np.hstack([mark, letters, equals, answers]))


def _answer_logits(logits: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (N, 5, V) at the places that predict the answer, and the answer (N, 5)."""
    return logits[:, _LENGTH + 1 : -1], rows[:, _LENGTH + 2 :]
