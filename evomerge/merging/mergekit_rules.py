"""mergekit's way of giving parameters per tensor: how it is evaluated, and a recipe said in it.

A rule is a list of conditions. The first one whose filter is part of the tensor's name holds;
its value is a number or a gradient over the layers.

Source: mergekit 0.1 (`config.py:evaluate_setting`, `plan.py`), arXiv:2403.13257. Read, not copied.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.core import tensor_names
from evomerge.core.ancestry import is_made
from evomerge.core.arrays import FloatArray
from evomerge.core.grouping import assign_groups
from evomerge.core.model_space import ModelSpace
from evomerge.core.recipe import SEGMENTS, Recipe
from evomerge.core.tensor_names import place
from evomerge.merging.arcee_fusion import ArceeFusion
from evomerge.merging.breadcrumbs import Band, Breadcrumbs, BreadcrumbsTies
from evomerge.merging.dare import DareLinear, DareTies
from evomerge.merging.della import Della, DellaLinear
from evomerge.merging.karcher import Karcher
from evomerge.merging.layer_scale import layer_scales
from evomerge.merging.linear import Linear
from evomerge.merging.model_stock import ModelStock
from evomerge.merging.nearswap import NearSwap
from evomerge.merging.nlerp import Nlerp
from evomerge.merging.nuslerp import NuSlerp
from evomerge.merging.plan import build_operators
from evomerge.merging.ram import Ram, RamPlus
from evomerge.merging.sce import Sce
from evomerge.merging.slerp import Slerp
from evomerge.merging.sparsified import AddSparsified, VoteSparsified
from evomerge.merging.task_arithmetic import TaskArithmetic
from evomerge.merging.ties import Ties

Number = float | bool
# Gradients interpolate at t * (n - 1), which float division may miss by a few units in the last
# place; no merged weight can tell.
_CLOSE = 1e-12
_LAYER_STEM = re.compile(r"(?:layers?|h|blocks?)\.\d+\.")


@dataclass(frozen=True)
class Condition:
    """A value for the tensors whose name contains `filter` (None: all).

    Attributes:
        value: A number, or numbers spread evenly from the first layer to the last.
        filter: Part of a tensor name.
    """

    value: Number | tuple[float, ...]
    filter: str | None = None


def evaluate(rule: Sequence[Condition], name: str, t: float) -> Number | None:
    """Return the value a rule gives to a tensor, None when no condition holds.

    Args:
        rule: Conditions; the first that holds decides.
        name: Tensor name.
        t: Where the tensor sits, from `depth_of`.
    """
    for condition in rule:
        if condition.filter in (None, "*") or condition.filter in name:
            value = condition.value
            if not isinstance(value, tuple):
                return value
            scaled = t * (len(value) - 1)
            low = int(scaled)
            high = min(len(value) - 1, low + 1)
            part = scaled - low
            return (1.0 - part) * value[low] + part * value[high]
    return None


def depth_of(name: str, n_layers: int) -> float:
    """Return t: 0 before the first layer and in it, 1 in the last layer and after it."""
    where = place(name)
    if where.layer is not None:
        return where.layer / (n_layers - 1) if n_layers > 1 else 1.0
    return 1.0 if where.section == "tail" else 0.0


def count_layers(space: ModelSpace) -> int:
    """Return the number of layers of the merged model, copied tensors included."""
    return tensor_names.count_layers(tensor.spec.name for tensor in space.tensors)


class _NotSayableError(Exception):
    """mergekit would compute something else."""


def write_mergekit(
    recipe: Recipe, space: ModelSpace, model_refs: Mapping[str, str], *, dtype: str | None = None
) -> tuple[dict[str, Any] | None, str]:
    """Return the mergekit config that computes a recipe, or None and the reason why none does.

    Where mergekit's arithmetic differs from ours only in rounding, the recipe counts as sayable;
    the config asks mergekit for float32.

    Args:
        recipe: What to say.
        space: The models it merges.
        model_refs: Source id -> what mergekit can open (`path`, `org/name@revision`, `model+lora`).
        dtype: Torch name of the output dtype, such as "bfloat16"; None leaves mergekit's default.

    Raises:
        ConfigError: The recipe does not fit the space.
    """
    try:
        return _config(recipe, space, model_refs, dtype), ""
    except _NotSayableError as error:
        return None, str(error)


def _config(
    recipe: Recipe, space: ModelSpace, model_refs: Mapping[str, str], dtype: str | None
) -> dict[str, Any]:
    if recipe.grouping == SEGMENTS:
        raise _NotSayableError("the recipe changes weights inside tensors (split points)")
    if layer_scales(recipe.params):
        raise _NotSayableError("mergekit cannot scale the merged task vector by layer (LiNeS)")
    if any(map(is_made, recipe.sources)):
        raise _NotSayableError("mergekit cannot add seeded noise")
    made = next((source for source in recipe.sources if source not in model_refs), None)
    if made is not None:
        raise _NotSayableError(f"{made!r} is computed by a transform, not a model that it can open")
    operators = build_operators(recipe, space)
    if len(space.merged) < len(space.tensors) and any(map(_rescales, operators)):
        raise _NotSayableError("mergekit would scale the tensors that are equal in all models")
    said = [_say(operator, len(recipe.sources)) for operator in operators]
    method, has_base, flags, _ = said[0]
    if any(item[:3] != said[0][:3] for item in said):
        raise _NotSayableError("its groups need different methods or flags in mergekit")
    names = [tensor.spec.name for tensor in space.merged]
    _, groups = assign_groups(recipe.grouping, names)
    n_layers = count_layers(space)
    refs = [model_refs[source] for source in recipe.sources]

    def rule(values: list[float]) -> Any:
        return _rule(np.array(values)[list(groups)], names, n_layers)

    models: list[dict[str, Any]] = []
    weighted = refs[1:] if has_base else refs
    if method == "slerp":
        models = [{"model": ref} for ref in refs]
    elif "weight" not in said[0][3]:
        models = [{"model": ref} for ref in weighted]
    else:
        for k, ref in enumerate(weighted):
            entry = {"weight": rule([item[3]["weight"][k] for item in said])}
            for key in ("density", "gamma"):
                if key in said[0][3]:
                    entry[key] = rule([item[3][key] for item in said])
            models.append({"model": ref, "parameters": entry})
    config: dict[str, Any] = {"merge_method": method}
    if has_base or method == "slerp":
        config["base_model"] = refs[0]
    config["models"] = models
    parameters: dict[str, Any] = dict(flags)
    if "lambda" in said[0][3] and any(item[3]["lambda"] != 1.0 for item in said):
        parameters["lambda"] = rule([item[3]["lambda"] for item in said])
    for key in ("t", "select_topk", "r", "alpha", "epsilon"):
        if key in said[0][3]:
            parameters[key] = rule([item[3][key] for item in said])
    if parameters:
        config["parameters"] = parameters
    config["dtype"] = "float32"
    if dtype is not None and dtype != "float32":
        config["out_dtype"] = dtype
    return config


_Said = tuple[str, bool, Mapping[str, bool | float], dict[str, Any]]


def _say(op: Any, n_sources: int) -> _Said:
    """Return (merge_method, has a base, flags, per-group values) of one group's operator."""
    if isinstance(op, Linear):
        return "linear", False, {"normalize": op.normalize}, {"weight": op.weights}
    if isinstance(op, TaskArithmetic):
        values = {"weight": op.weights, "lambda": op.lambda_}
        return "task_arithmetic", True, {"normalize": op.normalize}, values
    if isinstance(op, Slerp):
        has_base = n_sources == 3
        if has_base and op.space == "raw":
            raise _NotSayableError("mergekit's slerp does not pass over a third model")
        if op.compat == "mergekit" and not has_base:
            return "slerp", False, {}, {"t": op.t}
        if op.compat == "mergekit":
            raise _NotSayableError("mergekit's slerp does not work on task vectors")
        # The same arc; mergekit's slerp would cut it short for nearly parallel tensors.
        return "nuslerp", has_base, {}, {"weight": (1.0 - op.t, op.t)}
    if isinstance(op, NuSlerp):
        if not op.flatten and op.axis not in (-1, 0):
            raise _NotSayableError(f"mergekit's nuslerp has no axis {op.axis}")
        flags = {} if op.flatten else {"nuslerp_flatten": False, "nuslerp_row_wise": op.axis == 0}
        return "nuslerp", n_sources == 3, flags, {"weight": op.weights}
    if isinstance(op, Nlerp | Karcher | ModelStock):
        return _say_sphere(op, n_sources)
    if isinstance(op, Ties):
        return _say_ties(op)
    if isinstance(op, AddSparsified | VoteSparsified):
        return _say_sparsified(op)
    if isinstance(op, Sce):
        return _say_sce(op)
    if isinstance(op, Ram | RamPlus):
        return _say_ram(op)
    if isinstance(op, NearSwap):
        if op.compat != "mergekit":
            raise _NotSayableError("mergekit's nearswap takes steps in units of the weights")
        if n_sources != 2:
            raise _NotSayableError("mergekit's nearswap does not pass over a third model")
        return "nearswap", True, {}, {"t": op.t}
    if isinstance(op, ArceeFusion):
        raise _NotSayableError("mergekit draws the quartiles of arcee_fusion from a random sample")
    raise _NotSayableError(f"mergekit has no method like {type(op).__name__}")


def _say_sphere(op: Nlerp | Karcher | ModelStock, n_sources: int) -> _Said:
    if op.compat != "mergekit":
        raise _NotSayableError(f"mergekit's {type(op).__name__} differs; see `compat: mergekit`")
    if isinstance(op, ModelStock):
        if op.multiplier != 1.0:
            raise _NotSayableError("mergekit's model_stock has no multiplier")
        return "model_stock", True, {"filter_wise": op.filter_wise}, {}
    has_base = len(op.weights) < n_sources
    if isinstance(op, Nlerp):
        if has_base and op.space == "raw":
            raise _NotSayableError("mergekit's multislerp works on task vectors when it has a base")
        return "multislerp", has_base, {"normalize_weights": op.normalize}, {"weight": op.weights}
    if has_base:
        raise _NotSayableError("mergekit's karcher takes a base as one more model")
    if len(set(op.weights)) > 1:
        raise _NotSayableError("mergekit's karcher weighs all models alike")
    return "karcher", False, {"max_iter": op.max_iter, "tol": op.tol}, {}


def _rescales(op: Any) -> bool:
    if isinstance(op, Nlerp):
        return not op.normalize
    return isinstance(op, Linear) and abs(math.fsum(op.coefficients()) - 1.0) > 1e-9


def _say_ties(op: Ties) -> _Said:
    if op.fallback("", (1,)) is not None:
        raise _NotSayableError("mergekit trims norms and biases too; the recipe exempts them")
    if op.resolved_threshold != "tensor" and op.density < 1.0:
        raise _NotSayableError("mergekit trims each tensor apart; the recipe trims over the model")
    _same_vote(op.weights, op.resolved_sign)
    normalize = _normalizes(op.weights, op.resolved_divisor)
    flags = {"normalize": normalize, "rescale": op.rescale == "l1"}
    return "ties", True, flags, {"weight": op.weights, "density": op.density, "lambda": op.lambda_}


_SPARSIFIED: dict[type, str] = {
    Breadcrumbs: "breadcrumbs",
    BreadcrumbsTies: "breadcrumbs_ties",
    DareLinear: "dare_linear",
    DareTies: "dare_ties",
    Della: "della",
    DellaLinear: "della_linear",
}


def _say_sparsified(op: AddSparsified | VoteSparsified) -> _Said:
    method = _SPARSIFIED[type(op)]
    values: dict[str, Any] = {"weight": op.weights, "density": op.density, "lambda": op.lambda_}
    if isinstance(op, Band):
        if op.density < 1.0 and op.compat != "mergekit":
            raise _NotSayableError("mergekit may keep no element of a small tensor")
        if op.density < 1.0 and op.fallback("", (1,)) is not None:
            raise _NotSayableError("mergekit masks norms and biases too; the recipe exempts them")
        values["gamma"] = op.gamma
    elif op.density < 1.0:
        raise _NotSayableError("mergekit drops other random elements than our seeded masks")
    if isinstance(op, AddSparsified):
        return method, True, {"normalize": op.normalize}, values
    if op.fallback("", (1,)) is not None:
        raise _NotSayableError("mergekit votes on norms and biases too; the recipe exempts them")
    _same_vote(op.weights, op.resolved_sign)
    return method, True, {"normalize": _normalizes(op.weights, op.resolved_divisor)}, values


def _say_sce(op: Sce) -> _Said:
    if op.compat != "mergekit" or op.fallback("", (1,)) is not None:
        raise _NotSayableError("mergekit's sce differs; see `compat: mergekit`")
    if op.select_scope != "deltas" or op.q != 1.0 or op.lambda_ != 1.0:
        raise _NotSayableError("mergekit's sce has no q, lambda_ or select_scope")
    return "sce", True, {}, {"select_topk": op.select}


def _say_ram(op: Ram | RamPlus) -> _Said:
    if op.lambda_ != 1.0:
        raise _NotSayableError("mergekit's ram has no lambda_")
    values: dict[str, Any] = {"epsilon": op.epsilon}
    if isinstance(op, Ram):
        return "ram", True, {}, values
    return "ramplus_tl", True, {}, {**values, "r": op.r, "alpha": op.alpha}


def _same_vote(weights: Sequence[float], sign: str) -> None:
    is_even = weights[0] > 0 and len(set(weights)) == 1
    if sign != "weighted" and not is_even:
        raise _NotSayableError("mergekit weighs the votes for a sign; the recipe does not")


def _normalizes(weights: Sequence[float], divisor: str) -> bool:
    """Return mergekit's `normalize` for one of our divisors."""
    same_as_signed = {
        "signed_weights": True,
        "weights": min(weights) >= 0.0,
        "mean": set(weights) == {1.0},
    }
    if divisor == "none":
        return False
    if not same_as_signed.get(divisor, False):
        raise _NotSayableError(f"mergekit does not divide by {divisor!r}")
    return True


def _rule(values: FloatArray, names: Sequence[str], n_layers: int) -> Any:
    """Return the shortest rule that gives values[i] to names[i]: number, gradient or filters."""
    if (values == values[0]).all():
        return float(values[0])
    gradient = _gradient(values, names, n_layers)
    if gradient is not None:
        return gradient
    numbers, counts = np.unique(values, return_counts=True)
    default = float(numbers[counts.argmax()])
    conditions = [*_filters(values, names, default), Condition(default)]
    for name, value in zip(names, values, strict=True):
        if evaluate(conditions, name, 0.0) != value:
            raise _NotSayableError(f"no filter on names tells {name} from the others")
    return [
        {"value": c.value} if c.filter is None else {"filter": c.filter, "value": c.value}
        for c in conditions
    ]


def _gradient(values: FloatArray, names: Sequence[str], n_layers: int) -> list[float] | None:
    by_layer: dict[int, float] = {}
    for name, value in zip(names, values, strict=True):
        layer = place(name).layer
        if layer is not None:
            by_layer.setdefault(layer, float(value))
    if n_layers < 2 or len(by_layer) < n_layers:
        return None
    gradient = [by_layer[layer] for layer in range(n_layers)]
    rule = [Condition(tuple(gradient))]
    for name, value in zip(names, values, strict=True):
        found = evaluate(rule, name, depth_of(name, n_layers))
        if not math.isclose(float(found or 0.0), value, rel_tol=_CLOSE, abs_tol=_CLOSE):
            return None
    return gradient


def _filters(values: FloatArray, names: Sequence[str], default: float) -> list[Condition]:
    """Return conditions for every name whose value is not the default, widest first."""
    found: dict[str, float] = {}
    lasts: dict[str, float] = {}  # exact names that are part of other names: longest first
    for name, value in zip(names, values, strict=True):
        if value == default or any(part in name for part in found):
            continue
        stem = _LAYER_STEM.search(name)
        module = re.sub(r"\.(?:weight|bias)$", "", name)
        parts = [stem.group(), name[stem.end() :], module] if stem else [module]
        for part in (*parts, name):
            if all(v == value for n, v in zip(names, values, strict=True) if part in n):
                found[part] = float(value)
                break
        else:
            lasts[name] = float(value)
    ordered = [*found.items(), *sorted(lasts.items(), key=lambda item: -len(item[0]))]
    return [Condition(value, part) for part, value in ordered]
