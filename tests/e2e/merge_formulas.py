"""Every merge method written anew, in numpy, from its paper: what exports are compared with.

A formula takes one group's parameters and one tensor in every source (float64, base first).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from evomerge.core.tensor_names import order_key

Row = Mapping[str, np.ndarray]
KINDS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "gate_proj": "gate",
         "up_proj": "up", "down_proj": "down", "embed_tokens": "embed", "lm_head": "head"}  # fmt: skip


def rows_of(recipe: Mapping, names: Sequence[str]) -> dict[str, Row]:
    """Return tensor name -> parameters of its group, for a Llama with nothing copied."""
    params = {key: np.array(value) for key, value in recipe["params"].items()}
    n_rows = len(next(iter(params.values())))
    last = 1 + max(int(n) for n in re.findall(r"layers\.(\d+)\.", " ".join(names)))

    def module(name: str) -> tuple:
        found = re.search(r"layers\.(\d+)\.", name)
        kind = next((kind for part, kind in KINDS.items() if part in name), "norm")
        layer = int(found.group(1)) if found else -1 if kind == "embed" else last
        return (layer, kind)

    # Groups count in the order in which tensors come: by layer, by name within a layer.
    ordered = sorted(names, key=lambda name: (module(name)[0], name))
    keys = {
        "global": lambda _: "all",
        "layer": lambda name: module(name)[0],
        "module": module,
    }
    key = keys[recipe["grouping"]]
    groups = list(dict.fromkeys(key(name) for name in ordered))
    assert len(groups) == n_rows
    at = {name: groups.index(key(name)) for name in names}
    return {name: {k: v[at[name]] for k, v in params.items()} for name in names}


def linear(row: Row, values: list[Tensor], normalize: bool = True) -> Tensor:
    weights = row["weights"] / (row["weights"].sum() if normalize else 1.0)
    return sum(w * v for w, v in zip(weights, values, strict=True))


def task_arithmetic(row: Row, values: list[Tensor]) -> Tensor:
    base, *experts = values
    deltas = sum(w * (e - base) for w, e in zip(row["weights"], experts, strict=True))
    return base + float(row["lambda_"]) * deltas


def arc(t: float, a: Tensor, b: Tensor) -> Tensor:
    """Return SLERP of two tensors taken as vectors."""
    cosine = float((a * b).sum() / (a.norm() * b.norm()))
    omega = np.arccos(np.clip(cosine, -1.0, 1.0))
    if np.sin(omega) < 1e-6:
        return (1 - t) * a + t * b
    return (np.sin((1 - t) * omega) * a + np.sin(t * omega) * b) / np.sin(omega)


def slerp(row: Row, values: list[Tensor]) -> Tensor:
    if len(values) == 2:
        return arc(float(row["t"]), *values)
    base, a, b = values
    return base + arc(float(row["t"]), a - base, b - base)


def nuslerp(row: Row, values: list[Tensor]) -> Tensor:
    t = float(row["weights"][1] / row["weights"].sum())
    return slerp({"t": np.array(t)}, values)


def float32_deltas(values: list[Tensor]) -> list[Tensor]:
    base, *experts = (value.float() for value in values)
    return [expert - base for expert in experts]


def kth_largest(magnitudes: Tensor, density: float) -> float:
    n_kept = max(int(density * magnitudes.numel()), 1)
    return float(magnitudes.flatten().sort(descending=True).values[n_kept - 1])


def ties_paper(row: Row, values: list[Tensor], whole: Sequence[Tensor]) -> Tensor:
    """`whole`: each expert's task vector over the whole model, flattened."""
    deltas = float32_deltas(values)
    weights, scale = row["weights"], float(row["lambda_"])
    if values[0].dim() <= 1:  # norms: plain mean of the weighted task vectors
        total = sum(w * d.double() for w, d in zip(weights, deltas, strict=True))
        return values[0] + scale * total / len(weights)
    density = float(row["density"])
    kept = [
        d * (d.abs() >= kth_largest(all_of.abs(), density))
        for d, all_of in zip(deltas, whole, strict=True)
    ]
    return values[0] + scale * vote(kept, weights, [1.0] * len(kept), "mean")


def ties_mergekit(row: Row, values: list[Tensor]) -> Tensor:
    deltas = float32_deltas(values)
    density = float(row["density"])
    kept = [d * (d.abs() >= kth_largest(d.abs(), density)) for d in deltas]
    merged = vote(kept, row["weights"], row["weights"], "weights")
    return values[0] + float(row["lambda_"]) * merged


def vote(
    deltas: Sequence[Tensor], weights: np.ndarray, ballots: Sequence[float], divisor: str
) -> Tensor:
    """Return the sum of the task vectors that agree with the sign of the ballots' sum."""
    double = [d.double() for d in deltas]
    sign = torch.where(sum(b * d for b, d in zip(ballots, double, strict=True)) >= 0, 1.0, -1.0)
    agree = [(d * sign > 0).double() for d in double]
    total = sum(w * d * a for w, d, a in zip(weights, double, agree, strict=True))
    if divisor == "none":
        return total
    shares = [1.0] * len(double) if divisor == "mean" else weights
    below = sum(s * a for s, a in zip(shares, agree, strict=True))
    return total / torch.where(below == 0, 1.0, below)


def dare_values(row: Row, values: list[Tensor], combine: Callable) -> list[Tensor]:
    """Return what each element can be, over every choice of what was dropped."""
    # Masks compare 16 random bits, and what they keep is rescaled by exactly that share.
    share = round(float(row["density"]) * 2**16) / 2**16
    deltas = [d.double() / share for d in float32_deltas(values)]
    options = []
    for masks in itertools.product((0.0, 1.0), repeat=len(deltas)):
        dropped = [d * m for d, m in zip(deltas, masks, strict=True)]
        options.append(values[0] + float(row["lambda_"]) * combine(dropped, row["weights"]))
    return options


def segments(recipe: Mapping, tensors: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the merge of a recipe in segments, on one flat vector per source."""
    names = sorted(tensors[0], key=order_key)
    flat = [torch.cat([t[name].double().flatten() for name in names]) for t in tensors]
    breaks, weights = recipe["breaks"], recipe["params"]["weights"]
    assert breaks[-1] == len(flat[0])
    merged = torch.empty_like(flat[0])
    for start, stop, row in zip(breaks, breaks[1:], weights, strict=False):
        merged[start:stop] = sum(w * f[start:stop] for w, f in zip(row, flat, strict=True))
    sizes = [tensors[0][name].numel() for name in names]
    parts = merged.split(sizes)
    return {
        n: p.reshape(tensors[0][n].shape).to(tensors[0][n].dtype)
        for n, p in zip(names, parts, strict=True)
    }
