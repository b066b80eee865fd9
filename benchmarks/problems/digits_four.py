"""Four vision transformers, each fine-tuned on its own two or three digits, and their base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from benchmarks.problems.problem import Part, Problem, Weights, leads
from benchmarks.problems.training import fit, snapshot, trained_once
from evomerge.core.arrays import ScoreArray
from evomerge.quickstart.specialists import load_images, new_model
from evomerge.seeding import derive, generator

NAME = "digits_four"
SKILLS = {"012": (0, 1, 2), "34": (3, 4), "56": (5, 6), "789": (7, 8, 9)}
_SEED = 3
_N_SEARCH, _N_HELD_OUT, _N_BASE = 700, 600, 150


def is_available() -> str:
    """Return "": everything comes with scikit-learn."""
    return ""


def build(folder: Path) -> Problem:
    """Return the problem, training its models in `folder` if they are not there."""
    images = load_images()
    pixels, labels = torch.from_numpy(images.pixel_values), torch.from_numpy(images.labels)
    rows = generator(_SEED, NAME, "split").permutation(len(images))
    cut = _N_SEARCH + _N_HELD_OUT
    parts: dict[Part, np.ndarray] = {"search": rows[:_N_SEARCH], "held-out": rows[_N_SEARCH:cut]}
    train_rows = torch.from_numpy(rows[cut:])
    model = new_model(derive(_SEED, NAME, "weights"))

    def train() -> dict[str, Weights]:
        def learn(own: torch.Tensor, name: str, steps: int, rate: float) -> Weights:
            def loss_of(batch: torch.Tensor) -> torch.Tensor:
                chosen = own[batch]
                return cross_entropy(model(pixel_values=pixels[chosen]).logits, labels[chosen])

            seed = derive(_SEED, NAME, name)
            fit(list(model.parameters()), loss_of, len(own), seed=seed, steps=steps, rate=rate)
            return snapshot(model)

        model.train()
        models = {"base": learn(train_rows[:_N_BASE], "base", 200, 3e-3)}
        for skill, digits in SKILLS.items():
            model.load_state_dict(models["base"])
            own = train_rows[torch.isin(labels[train_rows], torch.tensor(digits))]
            models[skill] = learn(own, skill, 150, 1e-3)
        return models

    models = trained_once(folder / f"{NAME}.safetensors", train)
    model.eval()
    masks = {
        part: {skill: np.isin(images.labels[own], digits) for skill, digits in SKILLS.items()}
        for part, own in parts.items()
    }

    def score(weights: Weights, part: Part) -> dict[str, ScoreArray]:
        own = torch.from_numpy(parts[part])
        logits = functional_call(model, dict(weights), (pixels[own],)).logits
        margins = leads(logits, labels[own]).numpy()
        return {skill: margins[mask] for skill, mask in masks[part].items()}

    return Problem(
        name=NAME,
        summary="base and 4 ViTs of 39,610 weights (digits 012, 34, 56, 789); accuracy",
        models={name: models[name] for name in ("base", *SKILLS)},
        has_base=True,
        merge={"name": "task_arithmetic", "normalize": False},
        sizes={skill: int(mask.sum()) for skill, mask in masks["search"].items()},
        score=score,
        is_margin=True,
    )
