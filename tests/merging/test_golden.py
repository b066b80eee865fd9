"""Against the outputs of mergekit 0.1.5 and fusion_bench 0.2.33 (see ../shared/golden/README.md)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from evomerge.core.recipe import Recipe
from evomerge.merging.materialize import materialize
from evomerge.merging.quantiles import magnitude_threshold
from tests.merging.memory_source import MemorySource, space_of

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden"

pytestmark = pytest.mark.skipif(not GOLDEN.exists(), reason="../shared/golden is not here")

METHODS = (
    "arcee_fusion",
    "breadcrumbs",
    "breadcrumbs_ties",
    "della",
    "della_linear",
    "nearswap",
    "ram",
    "ramplus_tl",
    "sce",
    "linear",
    "slerp",
    "nuslerp",
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "multislerp",
    "karcher",
    "model_stock",
)
COMPAT = {"slerp", "ties", "dare_linear", "dare_ties", "multislerp", "karcher", "model_stock"}
COMPAT |= {"della", "della_linear", "breadcrumbs", "breadcrumbs_ties", "sce", "nearswap"}
OUR_NAMES = {"multislerp": "nlerp", "ramplus_tl": "ram_plus"}
# Common parameters of mergekit -> our parameters.
GENES = {"t": "t", "select_topk": "select", "r": "r", "alpha": "alpha"}
# Methods whose `base_model`, if any, is one of the merged models.
WITHOUT_BASE = ("linear", "slerp", "karcher")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def cases(*, random: bool) -> list[str]:
    if not GOLDEN.exists():
        return []
    listed = json.loads((GOLDEN / "manifest.json").read_text())["sets"]["mk015"]["cases"]
    return [
        name
        for name, case in listed.items()
        if case["method"] in METHODS and "error" not in case and case["random"] == random
    ]


def sources_of(folder: str, names, dtype=torch.float32) -> dict[str, MemorySource]:
    return {
        name: MemorySource(
            name,
            {k: v.to(dtype) for k, v in load_file(GOLDEN / folder / f"{name}.safetensors").items()},
        )
        for name in names
    }


def recipe_of(config: dict) -> tuple[Recipe, list[str]]:
    """Translate a mergekit config into our recipe, in mergekit's compatibility mode."""
    method = config["merge_method"]
    stems = [Path(model["model"]).stem for model in config["models"]]
    per_model = [model.get("parameters", {}) for model in config["models"]]
    common = dict(config.get("parameters", {}))
    base = Path(config["base_model"]).stem if "base_model" in config else None
    names = stems if base is None or base in stems else [base, *stems]
    if method == "slerp" and base == stems[1]:
        names = stems[::-1]
    params: dict[str, np.ndarray] = {"select": np.ones(1)} if method == "sce" else {}
    settings: dict[str, object] = {"compat": "mergekit"} if method in COMPAT else {}
    for key in GENES.keys() & common.keys():
        params[GENES[key]] = np.array([common.pop(key)])
    if method == "karcher":
        params["weights"] = np.ones((1, len(per_model)))
        settings |= {"max_iter": 10, "tol": 1e-5}
    elif "weight" in per_model[0]:
        params["weights"] = np.array([[entry["weight"] for entry in per_model]])
    for key in ("density", "gamma", "epsilon"):
        values = {entry[key] for entry in per_model if key in entry}
        if values:
            assert len(values) == 1
            params[key] = np.array([values.pop()])
    for key, value in common.items():
        if key == "lambda":
            params["lambda_"] = np.array([value])
        elif key == "normalize" and method == "ties":
            settings["divisor"] = "signed_weights" if value else "none"
        elif key in ("normalize", "normalize_weights"):
            settings["normalize"] = value
        elif key in ("filter_wise", "max_iter", "tol"):
            settings[key] = value
        elif key == "rescale":
            settings["rescale"] = "l1" if value else "none"
        elif key == "nuslerp_flatten":
            settings["flatten"] = value
        elif key == "nuslerp_row_wise":
            settings["axis"] = 0 if value else -1
        else:
            assert key == "int8_mask", key
    operator = OUR_NAMES.get(method, method)
    return Recipe(operator, tuple(names), params, settings=settings), names


def merge_case(name: str, **changes):
    config = yaml.safe_load((GOLDEN / "mk015" / f"{name}.yml").read_text())
    recipe, names = recipe_of(config)
    dtype = DTYPES[config["dtype"]]
    sources = sources_of(str(Path(config["models"][0]["model"]).parent), names, dtype)
    has_base = "base_model" in config and config["merge_method"] not in WITHOUT_BASE
    settings = {**recipe.settings, **changes}
    recipe = Recipe(recipe.operator, recipe.sources, recipe.params, settings=settings)
    merged = dict(materialize(recipe, space_of(sources, has_base=has_base), sources))
    return merged, load_file(GOLDEN / "mk015" / f"{name}.safetensors"), sources, dtype


@pytest.mark.parametrize("name", cases(random=False))
def test_mergekit_0_1_5_gives_the_same_tensors(name):
    merged, golden, sources, dtype = merge_case(name)
    assert set(merged) == set(golden)
    for key, expected in golden.items():
        assert merged[key].dtype == expected.dtype == dtype
        if name in ("linear_nonorm", "multislerp_nonorm") and key == "frozen.weight":
            # Identical in every source, so we copy it; mergekit scales it by the weights' sum.
            assert torch.equal(merged[key], sources["e1"].tensors[key])
            continue
        error = (merged[key].double() - expected.double()).abs()
        if dtype == torch.float32:
            # Its rows of three elements along the last axis get a t down to -29 from float32 cosines.
            is_amplified = name == "model_stock_filter" and key == "conv.weight"
            tolerance = 3e-6 if is_amplified else 1e-6
            assert error.max() <= tolerance * expected.double().abs().max(), key
        else:
            # mergekit rounds every intermediate to bf16, we round once (half an ulp, 2^-8).
            tensors = [source.tensors[key].double().abs() for source in sources.values()]
            largest = torch.stack([*tensors, expected.double().abs()]).amax(0)
            is_off = error > 3 * 2.0**-8 * largest
            if name == "ties_bf16":
                is_off &= ~is_undecided(sources, key, 0.5, (0.5, 0.3, 0.4))
            assert not is_off.any(), key


def is_undecided(sources, key, density, weights):
    """Where bf16 rounding decides: an expert's change has exactly the threshold's magnitude
    (we keep all such elements, mergekit as many as fit, in the order of its sort), or the vote
    cancels to within the rounding of the weights.
    """
    base = sources["base"].tensors[key].float()
    deltas = [s.tensors[key].float() - base for name, s in sources.items() if name != "base"]
    found = torch.zeros(base.shape, dtype=torch.bool)
    for delta in deltas:
        found |= delta.abs() == magnitude_threshold(delta, density, exact=True)
    votes = torch.stack([w * delta for w, delta in zip(weights, deltas, strict=True)])
    return found | (votes.sum(0).abs() <= 2.0**-7 * votes.abs().sum(0))


@pytest.mark.parametrize("name", [case for case in cases(random=False) if "bf16" in case])
def test_bf16_is_the_float32_result_rounded_once(name):
    merged, _, sources, _ = merge_case(name)
    config = yaml.safe_load((GOLDEN / "mk015" / f"{name}.yml").read_text())
    recipe, names = recipe_of(config)
    exact = {
        source.id: MemorySource(source.id, {k: v.float() for k, v in source.tensors.items()})
        for source in sources.values()
    }
    space = space_of(exact, has_base=recipe.operator in ("task_arithmetic", "ties"))
    assert names == list(space.sources)
    for key, tensor in materialize(recipe, space, exact):
        assert torch.equal(merged[key], tensor.to(torch.bfloat16)), key


def test_dare_seed7_keeps_as_many_elements_and_as_much_norm_as_mergekit():
    names = cases(random=True)
    assert {"dare_ties_seed7", "dare_linear_seed7"} <= set(names)
    ours = {"kept": 0.0, "norm": 0.0, "n": 0}
    theirs = dict(ours)
    merged, golden, sources, _ = merge_case("dare_linear_seed7", seed=7)
    for key, expected in golden.items():
        base = sources["base"].tensors[key].double()
        if key in ("frozen.weight", "sparse.weight"):
            continue
        for totals, tensor in ((ours, merged[key]), (theirs, expected)):
            change = tensor.double() - base
            totals["kept"] += float((change.abs() > 1e-7).sum())
            totals["norm"] += float(change.square().sum())
            totals["n"] += change.numel()
    assert ours["n"] > 900
    for totals in (ours, theirs):
        # An element changes unless all three experts drop it: 1 - 0.5 ** 3.
        assert abs(totals["kept"] / totals["n"] - 0.875) < 0.04
    assert abs(ours["norm"] / theirs["norm"] - 1.0) < 0.15


def test_dare_ties_seed7_has_the_norm_of_mergekit():
    merged, golden, sources, _ = merge_case("dare_ties_seed7", seed=7)
    norms = []
    for result in (merged, golden):
        changes = [result[k].double() - sources["base"].tensors[k].double() for k in golden]
        norms.append(sum(float(change.square().sum()) for change in changes))
    assert abs(norms[0] / norms[1] - 1.0) < 0.2


@pytest.mark.parametrize("percent", [20, 50])
@pytest.mark.parametrize("combine", ["sum", "mean"])
def test_fusion_bench_global_ties_gives_the_same_tensors(percent, combine):
    sources = sources_of("inputs_fb", ["base", "e1", "e2", "e3"])
    space = space_of(sources)
    # Its kthvalue keeps one element more than the rounded-down fraction.
    n = space.n_elements
    density = (int(n * percent / 100) + 1.5) / n
    params = {
        "weights": np.ones((1, 3)),
        "density": np.array([density]),
        "lambda_": np.array([0.3]),
    }
    settings = {"vectors": "include", "divisor": {"sum": "none", "mean": "mean"}[combine]}
    recipe = Recipe("ties", space.sources, params, settings=settings)
    golden = load_file(GOLDEN / "fb" / f"ties_global_K{percent}_{combine}.safetensors")
    merged = dict(materialize(recipe, space, sources))
    assert set(merged) == set(golden)
    for key, expected in golden.items():
        error = (merged[key].double() - expected.double()).abs().max()
        assert error <= 1e-6 * max(1.0, float(expected.abs().max())), key
