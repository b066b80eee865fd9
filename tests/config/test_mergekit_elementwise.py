"""mergekit configs of DELLA, breadcrumbs, SCE, nearswap, RAM and Arcee Fusion, in and out."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.config.mergekit_yaml import read_mergekit, write_mergekit
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError
from tests.config.test_mergekit_yaml import (
    BASE,
    REFS,
    llama_space,
    round_trip,
    values_by_name,
    write,
)

MODELS = "models: [{model: a, parameters: {weight: 0.3}}, {model: b, parameters: {weight: 1}}]\n"
BARE = "models: [{model: a}, {model: b}]\n"


def read(tmp_path, text):
    plan = read_mergekit(write(tmp_path, text))
    ids = ("base", "a", "b")[: 1 + len(plan.models)]
    return plan.recipe(llama_space(ids, has_base=True))


@pytest.mark.parametrize(
    ("text", "params", "settings"),
    [
        (
            f"merge_method: della\n{BASE}{MODELS}parameters: {{density: 0.4, epsilon: 0.1}}\n",
            {"density": 0.4, "epsilon": 0.1, "lambda_": 1.0},
            {"compat": "mergekit", "rescale": "l1", "divisor": "signed_weights"},
        ),
        (
            f"merge_method: della\n{BASE}{MODELS}parameters: {{normalize: false, lambda: 1.2}}\n",
            {"density": 1.0, "epsilon": 0.15, "lambda_": 1.2},
            {"compat": "mergekit", "rescale": "l1", "divisor": "none"},
        ),
        (
            f"merge_method: della_linear\n{BASE}{MODELS}parameters: {{rescale: false}}\n",
            {"density": 1.0, "epsilon": 0.15},
            {"compat": "mergekit", "rescale": "none", "normalize": False},
        ),
        (
            f"merge_method: breadcrumbs\n{BASE}{MODELS}parameters: {{density: 0.5, gamma: 0.02}}\n",
            {"density": 0.5, "gamma": 0.02},
            {"compat": "mergekit", "normalize": False},
        ),
        (
            f"merge_method: breadcrumbs_ties\n{BASE}{MODELS}parameters: {{normalize: true}}\n",
            {"density": 1.0, "gamma": 0.01},
            {"compat": "mergekit", "divisor": "signed_weights"},
        ),
        (f"merge_method: sce\n{BASE}{BARE}", {"select": 1.0}, {"compat": "mergekit"}),
        (
            f"merge_method: nearswap\n{BASE}models: [{{model: a}}]\nparameters: {{t: 0.001}}\n",
            {"t": 0.001},
            {"compat": "mergekit"},
        ),
        (f"merge_method: arcee_fusion\n{BASE}models: [{{model: a}}, {{model: base}}]\n", {}, {}),
        (f"merge_method: ram\n{BASE}{BARE}", {"epsilon": 1e-5}, {}),
        (
            f"merge_method: ramplus_tl\n{BASE}{BARE}parameters: {{alpha: 0.5}}\n",
            {"r": 0.1, "alpha": 0.5, "epsilon": 1e-5},
            {},
        ),
    ],
)
def test_parameters_and_defaults_are_mergekits(tmp_path, text, params, settings):
    recipe = read(tmp_path, text)
    for key, value in params.items():
        np.testing.assert_array_equal(recipe.params[key], [value])
    assert dict(recipe.settings) == settings
    if "weight:" in text:
        np.testing.assert_array_equal(recipe.params["weights"], [[0.3, 1.0]])


def test_values_per_model_and_gradients_are_read(tmp_path):
    text = """
merge_method: breadcrumbs
base_model: base
models:
  - {model: a, parameters: {weight: [0.0, 0.9], density: 0.5, gamma: 0.02}}
  - {model: b, parameters: {weight: 0.4, density: 0.5, gamma: 0.02}}
"""
    recipe = read(tmp_path, text)
    assert recipe.grouping == "layer"
    weights = values_by_name(recipe, llama_space(("base", "a", "b"), has_base=True), "weights")
    assert weights["model.layers.3.mlp.up_proj.weight"] == [0.9, 0.4]
    assert set(recipe.params["gamma"]) == {0.02}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"merge_method: sce\n{BASE}{MODELS}", "weight is not a parameter of sce"),
        (f"merge_method: sce\n{BASE}{BARE}parameters: {{select: 1}}\n", "mean 'select_topk'"),
        (f"merge_method: nearswap\n{BASE}{BARE}", "nearswap: needs two models"),
        (f"merge_method: nearswap\n{BASE}models: [{{model: a}}]\n", "no `t` is given"),
        (f"merge_method: arcee_fusion\n{BASE}{BARE}", "arcee_fusion: needs two models"),
        (f"merge_method: ram\n{BARE}", "base_model is missing; ram needs it"),
        (f"merge_method: ram\n{BASE}{BARE}parameters: {{r: 1}}\n", "parameters.r is not"),
        (
            f"merge_method: breadcrumbs\n{BASE}{MODELS}parameters: {{rescale: true}}\n",
            "parameters.rescale: evomerge's breadcrumbs does not rescale",
        ),
        (
            f"merge_method: della\n{BASE}{MODELS}".replace("0.3}", "0.3, epsilon: 0.2}"),
            "epsilon differs between models",
        ),
        (f"merge_method: sce\n{BASE}{BARE}parameters: {{select_topk: 2}}\n", "at most 1"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("operator", "has_base", "params", "settings"),
    [
        (
            "breadcrumbs",
            True,
            {"weights": [[0.5, 0.3]], "density": [0.6], "gamma": [0.1]},
            {"compat": "mergekit", "normalize": False},
        ),
        (
            "breadcrumbs_ties",
            True,
            {"weights": [[0.5, 0.3]], "density": [0.6], "gamma": [0.1], "lambda_": [0.7]},
            {"compat": "mergekit", "divisor": "none"},
        ),
        ("della", True, {"weights": [[0.5, 0.3]], "density": [1.0]}, {"compat": "mergekit"}),
        ("della_linear", True, {"weights": [[0.5, 0.3]], "density": [1.0]}, {}),
        ("sce", True, {"select": [0.4]}, {"compat": "mergekit"}),
        ("nearswap", False, {"t": [0.001]}, {"compat": "mergekit"}),
        ("ram", True, {"epsilon": [1e-4]}, {}),
        ("ram_plus", True, {"r": [0.2], "alpha": [0.3], "epsilon": [0.0]}, {}),
    ],
)
def test_what_mergekit_can_say_reads_back(tmp_path, operator, has_base, params, settings):
    space = llama_space(("base", "a", "b")[not has_base :], has_base=has_base)
    values = {key: np.array(value) for key, value in params.items()}
    recipe = Recipe(operator, space.sources, values, "global", None, settings)
    if operator == "nearswap":
        body, reason = write_mergekit(recipe, space, REFS)
        assert body is not None, reason
        assert body["base_model"] == "org/a"
        assert body["models"] == [{"model": "./b"}]
        assert body["parameters"] == {"t": 0.001}
        return
    back = round_trip(recipe, space, tmp_path)
    assert back.operator == operator
    for key, value in values.items():
        np.testing.assert_array_equal(back.params[key], value)
    for key, setting in settings.items():
        assert back.settings[key] == setting


@pytest.mark.parametrize(
    ("operator", "params", "settings", "reason"),
    [
        ("breadcrumbs", {"density": [0.5]}, {}, "keep no element"),
        (
            "breadcrumbs",
            {"density": [0.5]},
            {"compat": "mergekit", "vectors": "exempt"},
            "masks norms",
        ),
        ("breadcrumbs_ties", {"density": [1.0]}, {}, "votes on norms"),
        ("della", {"density": [0.5]}, {"compat": "mergekit"}, "seeded masks"),
        ("della_linear", {"density": [0.5]}, {}, "seeded masks"),
        ("sce", {}, {}, "compat: mergekit"),
        ("sce", {"q": [0.5]}, {"compat": "mergekit"}, "no q"),
        ("ram", {"lambda_": [0.5]}, {}, "no lambda_"),
        ("nearswap", {}, {}, "units of the weights"),
        ("nearswap", {}, {"compat": "mergekit"}, "third model"),
        ("arcee_fusion", {}, {}, "random sample"),
        ("magmax", {}, {}, "no method like MagMax"),
        ("consensus", {}, {}, "no method like Consensus"),
        ("localize_and_stitch", {}, {}, "no method like LocalizeAndStitch"),
    ],
)
def test_recipes_that_mergekit_would_compute_otherwise_are_not_written(
    operator, params, settings, reason
):
    space = llama_space(("base", "a", "b"), has_base=True)
    weighted = ("breadcrumbs", "breadcrumbs_ties", "della", "della_linear", "consensus",
                "localize_and_stitch")  # fmt: skip
    values = {key: np.array(value) for key, value in params.items()}
    if operator in weighted:
        values["weights"] = np.array([[0.5, 0.3]])
    recipe = Recipe(operator, space.sources, values, "global", None, settings)
    body, why = write_mergekit(recipe, space, REFS)
    assert body is None
    assert reason in why
