"""Training small models from fixed seeds, once per folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from evomerge.seeding import derive

# Row numbers of a batch -> the loss of the model on it.
LossOf = Callable[[Tensor], Tensor]


def fit(
    parameters: list[Tensor], loss_of: LossOf, n_rows: int, *, seed: int, steps: int,
    rate: float, batch_size: int = 64,
) -> None:  # fmt: skip
    """Train with AdamW on random batches; the rate warms up over a tenth and falls to 0.

    Args:
        parameters: What to train, in place.
        loss_of: Loss of a (batch_size,) batch of row numbers.
        n_rows: Rows to draw from.
        seed: Of the batches.
        steps: Number of steps.
        rate: Highest learning rate.
        batch_size: Rows per step.
    """
    stream = torch.Generator().manual_seed(derive(seed, "batches") >> 1)
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    warm_up = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up)),
    )
    for _ in range(steps):
        loss = loss_of(torch.randint(n_rows, (batch_size,), generator=stream))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def seeded(seed: int, make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """Return an untrained model whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def snapshot(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return a copy of a model's tensors."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def trained_once(
    file: Path, train: Callable[[], Mapping[str, Mapping[str, Tensor]]]
) -> dict[str, dict[str, Tensor]]:
    """Return name -> tensors of what `train` makes, from `file` where it is there already."""
    if not file.exists():
        models = train()
        flat = {f"{m}/{t}": tensor for m, body in models.items() for t, tensor in body.items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".partial-{os.getpid()}")
        save_file(flat, partial, metadata={"models": "\n".join(models)})
        partial.replace(file)
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(file).items():
        model, _, name = key.partition("/")
        found.setdefault(model, {})[name] = tensor
    return found
