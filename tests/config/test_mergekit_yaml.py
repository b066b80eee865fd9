"""mergekit configs in, recipes out, and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from evomerge.config.mergekit_yaml import read_mergekit, write_mergekit
from evomerge.core.model_space import ModelSpace, SourceHeader, TensorSpec, align, lone
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError
from evomerge.merging.materialize import materialize
from evomerge.storage.model_folder import ModelFolder

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden"
OURS = ("linear", "task_arithmetic", "slerp", "nuslerp", "ties", "dare_linear", "dare_ties",
        "multislerp", "karcher", "model_stock",
        "della", "della_linear", "breadcrumbs", "breadcrumbs_ties", "sce", "nearswap",
        "arcee_fusion", "ram", "ramplus_tl", "passthrough")  # fmt: skip
KINDS = (
    "self_attn.q_proj.weight",
    "self_attn.o_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
    "input_layernorm.weight",
)


def llama_space(ids: tuple[str, ...], *, has_base: bool, n_layers: int = 4) -> ModelSpace:
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    names += [f"model.layers.{layer}.{kind}" for layer in range(n_layers) for kind in KINDS]
    headers = [
        SourceHeader(
            source,
            "LlamaForCausalLM",
            {n: TensorSpec(n, "F32", (4,) if "norm" in n else (4, 4)) for n in names},
            {n: f"{source}{n}" for n in names},
        )
        for source in ids
    ]
    return align(headers, has_base=has_base)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "merge.yml"
    path.write_text(text)
    return path


def values_by_name(recipe: Recipe, space: ModelSpace, param: str) -> dict[str, object]:
    from evomerge.core.grouping import assign_groups

    names = [tensor.spec.name for tensor in space.merged]
    _, groups = assign_groups(recipe.grouping, names)
    return {n: recipe.params[param][g].tolist() for n, g in zip(names, groups, strict=True)}


# --- the golden files ---------------------------------------------------------------------


def golden_files(*, ours: bool) -> list[Path]:
    files = sorted(GOLDEN.glob("mk015/*.yml"))
    return [f for f in files if (yaml.safe_load(f.read_text())["merge_method"] in OURS) == ours]


needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden files at {GOLDEN}")


@needs_golden
@pytest.mark.parametrize("path", golden_files(ours=True), ids=lambda path: path.stem)
def test_golden_configs_give_mergekits_tensors(path):
    plan = read_mergekit(path)
    refs = [*([plan.base_model] if plan.base_model else []), *plan.models]
    assert all((GOLDEN / ref.model).is_file() for ref in refs)
    sources = {f"s{i}": ModelFolder(f"s{i}", GOLDEN / ref.model) for i, ref in enumerate(refs)}
    headers = [source.header() for source in sources.values()]
    has_base = plan.base_model is not None
    space = align(headers, has_base=has_base) if len(headers) > 1 else lone(headers[0])
    recipe = plan.recipe(space)
    assert recipe.grouping == "global"
    if "seed" in path.stem or path.stem == "ties_bf16":
        return  # other random masks; an expert's change on the threshold's edge (test_golden.py)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[plan.dtype]
    merged = dict(materialize(recipe, space, sources, out_dtype=dtype))
    if path.stem == "multislerp_base":
        # mergekit refuses the tensor that no expert changed; here it is copied.
        assert torch.equal(merged["frozen.weight"], sources["s0"].read("frozen.weight"))
        return
    golden = ModelFolder("golden", path.with_suffix(".safetensors"))
    # mergekit computes in `dtype`; a bf16 result may differ by some of its roundings.
    tolerance = 2e-6 if dtype == torch.float32 else 2e-2
    for name, tensor in merged.items():
        expected = golden.read(name)
        if path.stem in ("linear_nonorm", "multislerp_nonorm") and name == "frozen.weight":
            # Equal in all models: copied here, scaled by the weights' sum, 1.2, in mergekit.
            expected = expected / 1.2
        assert tensor.dtype == expected.dtype
        torch.testing.assert_close(
            tensor.double(), expected.double(), rtol=tolerance, atol=tolerance, msg=name
        )


@needs_golden
@pytest.mark.parametrize("path", golden_files(ours=False), ids=lambda path: path.stem)
def test_golden_configs_of_other_methods_are_refused_by_name(path):
    method = yaml.safe_load(path.read_text())["merge_method"]
    with pytest.raises(ConfigError, match=f"merge_method: '{method}'.*Known: linear"):
        read_mergekit(path)


# --- parameters ---------------------------------------------------------------------------


def test_a_base_among_the_models_is_not_an_expert(tmp_path):
    plan = read_mergekit(
        write(
            tmp_path,
            """
merge_method: ties
base_model: org/base
models:
  - model: org/base
    # no parameters necessary for base model
  - model: org/math@abc123
    parameters: {density: 0.5, weight: 0.5}
  - model: org/code+org/code-lora
    parameters: {density: 0.5, weight: 0.3}
parameters: {normalize: true, int8_mask: true}
dtype: float16
""",
        )
    )
    assert plan.base_model is not None
    assert plan.base_model.model == "org/base"
    assert [(m.model, m.revision, m.lora) for m in plan.models] == [
        ("org/math", "abc123", None),
        ("org/code", None, "org/code-lora"),
    ]
    recipe = plan.recipe(llama_space(("base", "math", "code"), has_base=True))
    assert recipe.sources == ("base", "math", "code")
    np.testing.assert_array_equal(recipe.params["weights"], [[0.5, 0.3]])
    assert recipe.settings["compat"] == "mergekit"
    assert recipe.settings["divisor"] == "signed_weights"
    assert plan.dtype == "float16"


def test_gradients_run_over_the_layers(tmp_path):
    plan = read_mergekit(
        write(
            tmp_path,
            """
merge_method: slerp
base_model: a
models: [{model: a}, {model: b}]
parameters: {t: [0.0, 0.6, 0.9]}
""",
        )
    )
    space = llama_space(("a", "b"), has_base=True, n_layers=5)
    recipe = plan.recipe(space)
    assert recipe.grouping == "layer"
    t = values_by_name(recipe, space, "t")
    got = [t[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in range(5)]
    np.testing.assert_allclose(got, [0.0, 0.3, 0.6, 0.75, 0.9])
    assert t["model.embed_tokens.weight"] == 0.0
    assert t["model.norm.weight"] == t["lm_head.weight"] == 0.9


def test_filters_pick_tensors_by_part_of_their_name(tmp_path):
    plan = read_mergekit(
        write(
            tmp_path,
            """
merge_method: slerp
base_model: a
slices:
  - sources:
      - {model: a, layer_range: [0, 4]}
      - {model: b, layer_range: [0, 4]}
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 1]}
    - {filter: mlp, value: 0.25}
    - {value: 0.5}
""",
        )
    )
    space = llama_space(("a", "b"), has_base=True)
    recipe = plan.recipe(space)
    assert recipe.grouping == "module"
    t = values_by_name(recipe, space, "t")
    assert t["model.layers.3.self_attn.q_proj.weight"] == 1.0
    assert t["model.layers.3.mlp.up_proj.weight"] == 0.25
    assert t["model.layers.0.input_layernorm.weight"] == t["lm_head.weight"] == 0.5


def test_filters_without_gradients_group_by_kind(tmp_path):
    text = """
merge_method: linear
models:
  - {model: a, parameters: {weight: [{filter: mlp, value: 1.0}, {value: 0.5}]}}
  - {model: b, parameters: {weight: 0.5}}
"""
    space = llama_space(("a", "b"), has_base=False)
    recipe = read_mergekit(write(tmp_path, text)).recipe(space)
    assert recipe.grouping == "kind"
    weights = values_by_name(recipe, space, "weights")
    assert weights["model.layers.1.mlp.up_proj.weight"] == [1.0, 0.5]
    assert weights["model.norm.weight"] == [0.5, 0.5]


def test_common_parameters_hold_where_a_model_has_none(tmp_path):
    text = """
merge_method: dare_ties
base_model: base
models:
  - {model: a, parameters: {weight: [{filter: mlp, value: 0.9}]}}
  - {model: b}
parameters: {weight: 0.4, density: 0.7, lambda: 0.8, rescale: false}
"""
    space = llama_space(("base", "a", "b"), has_base=True)
    recipe = read_mergekit(write(tmp_path, text)).recipe(space)
    weights = values_by_name(recipe, space, "weights")
    assert weights["model.layers.0.mlp.down_proj.weight"] == [0.9, 0.4]
    assert weights["lm_head.weight"] == [0.4, 0.4]
    assert set(recipe.params["density"]) == {0.7}
    assert set(recipe.params["lambda_"]) == {0.8}
    assert recipe.settings == {"compat": "mergekit", "rescale": "none", "divisor": "none"}


def test_linear_counts_a_listed_base_as_one_more_model(tmp_path):
    text = """
merge_method: linear
base_model: base
models:
  - {model: a, parameters: {weight: 1}}
  - {model: base, parameters: {weight: 3}}
"""
    recipe = read_mergekit(write(tmp_path, text)).recipe(llama_space(("base", "a"), has_base=True))
    np.testing.assert_array_equal(recipe.params["weights"], [[3.0, 1.0]])


def test_values_that_split_a_kind_are_refused(tmp_path):
    text = """
merge_method: slerp
base_model: a
models: [{model: a}, {model: b}]
parameters: {t: [{filter: input_layernorm, value: 0.1}, {filter: "0.mlp.up", value: 0.2}, {value: 0.3}]}
"""
    space = llama_space(("a", "b"), has_base=True)
    assert read_mergekit(write(tmp_path, text)).recipe(space).grouping == "module"
    names = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.bias")
    specs = {n: TensorSpec(n, "F32", (4,)) for n in names}
    headers = [SourceHeader(s, "", specs, {n: s for n in names}) for s in "ab"]
    plan = read_mergekit(write(tmp_path, text.replace("input_layernorm", "bias")))
    with pytest.raises(ConfigError, match="cannot tell two tensors of one layer and kind apart"):
        plan.recipe(align(headers, has_base=True))


BASE = "base_model: base\n"
MODELS = "models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]\n"
TIES = f"merge_method: ties\n{BASE}{MODELS}"
SLERP = "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\n"
KARCHER = "merge_method: karcher\nmodels: [{model: a}, {model: b}]\n"
SLICE = "merge_method: slerp\nbase_model: a\nparameters: {t: 0.5}\nslices:\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_method: tiess\n" + MODELS, "Did you mean 'ties'"),
        ("merge_method: [ties]\n" + MODELS, "is not read by evomerge"),
        (MODELS, "merge_method: is missing"),
        ("merge_method: frankenmerge\n" + MODELS, "'frankenmerge' is not read"),
        ("merge_method: passthrough\n" + MODELS, "weight is not a parameter of passthrough"),
        ("merge_method: passthrough\nmodels: [{model: a}, {model: b}]\n", "one model at a time"),
        (TIES + "chat_template: auto\n", "chat_template: evomerge does not read this key"),
        (TIES + "tokenizer_source: union\n", "tokenizer_source: 'union'"),
        (TIES + "dtype: bfloat61\n", "Did you mean 'bfloat16'"),
        (TIES + "modules: {}\n", "modules: evomerge does not read"),
        (TIES + "parameters: {t: 1}\n", "parameters.t is not a parameter of ties"),
        (TIES + "parameters: {normalise: true}\n", "Did you mean 'normalize'"),
        (TIES + "parameters: {normalize: [{filter: mlp, value: true}]}\n", "one value for the whole"),
        (TIES + "parameters: {normalize: 0.5}\n", "expected true or false"),
        (TIES + "parameters: {density: 1e-3}\n", "write 1.0e-3"),
        (TIES + "parameters: {density: .nan}\n", "expected a number"),
        (TIES + "parameters: {density: true}\n", "expected a number"),
        (TIES + "parameters: {density: []}\n", "expected a number"),
        (TIES + "parameters: {density: {value: 1}}\n", "expected a number or a list"),
        (TIES + "parameters: {density: [{value: 1}, 2]}\n", r"density.1: expected \{filter"),
        (TIES + "parameters: {density: [{filter: 3, value: 1}]}\n", "filter: expected text"),
        (TIES + "parameters: {density: [{filtre: mlp, value: 1}]}\n", "Did you mean 'filter'"),
        (TIES.replace("weight: 1}}, ", "normalize: 1}}, "), "put it in the top-level parameters"),
        (TIES.replace("weight: 1}}, ", "gamma: 1}}, "), "models.0.parameters.gamma"),
        (TIES.replace(BASE, ""), "base_model is missing; ties needs it"),
        (TIES.replace("{model: b", "{model: a"), "'a' is listed twice"),
        (TIES.replace("{model: b", "{model: a+b+c"), "models.1.model: expected a path"),
        (TIES.replace("{model: b", "{model: {model: {path: x}, lora: y@z}"), "revision of a LoRA"),
        (TIES.replace("{model: b", "{modle: b"), "models.1.modle.*Did you mean 'model'"),
        ("merge_method: ties\nbase_model: a\nmodels: [{model: a}]\n", "at least one model beside"),
        ("merge_method: ties\nbase_model: a\nmodels: a\n", "models: expected a list"),
        (TIES + "slices: []\n", "exactly one of"),
        (SLERP.replace("base_model: a", "base_model: c"), "slerp: needs two models"),
        (f"merge_method: nuslerp\nbase_model: a\n{MODELS}", "nuslerp: needs two models beside"),
        (f"merge_method: linear\n{BASE}{MODELS}", "list it with a weight"),
        (SLICE + "  - sources: [{model: a, layer_range: [0, 4]}]\n" * 2, "stack parts of models"),
        (SLICE + "  - sources: [{model: a, layer_range: [1, 4]}]\n", "not the whole model"),
        (SLICE + "  - sources: [{model: a}]\n", "layer_range: None"),
        (
            SLICE + "  - sources: [{model: a, layer_range: [0, 4]}, {model: b, layer_range: [0, 5]}]\n",
            "different layer ranges",
        ),
        (SLICE + "  - {residual_weight: 1, sources: []}\n", "residual_weight"),
        ("- 1\n", "expected a mapping"),
        ("merge_method: model_stock\nmodels: [{model: a}, {model: b}]\n", "base_model is missing"),
        (f"merge_method: model_stock\n{BASE}models: [{{model: a}}, {{model: base}}]\n", "two models beside"),
        (f"merge_method: karcher\n{BASE}models: [{{model: a}}, {{model: b}}]\n", "list it under models"),
        (KARCHER + "parameters: {max_iter: 2.5}\n", "max_iter: 2.5 is not a whole number"),
        (KARCHER + "parameters: {tol: [1.0, 2.0]}\n", "parameters.tol: evomerge has one value"),
        (KARCHER + "parameters: {weight: 1}\n", "parameters.weight is not a parameter of karcher"),
        (f"merge_method: multislerp\n{MODELS}parameters: {{eps: 1}}\n", "parameters.eps is not"),
        ("a: &x 1\nb: *x\n", "aliases"),
        ("merge_method: ties\nmerge_method: ties\n", "twice"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_file_and_key(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_mergekit(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SLERP, "no `t` is given for model.embed_tokens.weight"),
        (SLERP + "parameters: {t: 2}\n", "t is 2, must be at most 1"),
        (SLERP + "parameters: {t: [{filter: mlp, value: 1}]}\n", "no `t` is given"),
        (
            (SLICE + "  - sources: [{model: a, layer_range: [0, 8]}, {model: b, layer_range: [0, 8]}]\n"),
            "slices end at layer 8, the models have 4",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_models_is_refused(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_mergekit(path).recipe(llama_space(("a", "b"), has_base=True))
    assert str(path) in str(caught.value)


def test_densities_that_differ_between_models_are_refused(tmp_path):
    text = TIES.replace("weight: 1}}, ", "weight: 1, density: 0.2}}, ")
    plan = read_mergekit(write(tmp_path, text))
    with pytest.raises(ConfigError, match="density differs between models"):
        plan.recipe(llama_space(("base", "a", "b"), has_base=True))


def test_a_missing_weight_names_its_model(tmp_path):
    text = TIES.replace("{model: b, parameters: {weight: 1}}", "{model: b}")
    plan = read_mergekit(write(tmp_path, text))
    with pytest.raises(ConfigError, match="no `weight` of b is given"):
        plan.recipe(llama_space(("base", "a", "b"), has_base=True))


def test_huge_files_are_refused(tmp_path):
    path = write(tmp_path, "#" * (1 << 20) + TIES)
    with pytest.raises(ConfigError, match="at most"):
        read_mergekit(path)


# --- writing ------------------------------------------------------------------------------

REFS = {"base": "org/base", "a": "org/a", "b": "./b"}


def round_trip(recipe: Recipe, space: ModelSpace, tmp_path: Path) -> Recipe:
    body, reason = write_mergekit(recipe, space, REFS, dtype="bfloat16")
    assert body is not None, reason
    path = write(tmp_path, yaml.safe_dump(body))
    plan = read_mergekit(path)
    assert plan.dtype == "bfloat16"
    order = [*([plan.base_model] if plan.base_model else []), *plan.models]
    ids = tuple({ref: source for source, ref in REFS.items()}[model.model] for model in order)
    return plan.recipe(llama_space(ids, has_base=plan.base_model is not None))


@pytest.mark.parametrize("grouping", ["global", "block:2", "layer", "kind", "module"])
@pytest.mark.parametrize(
    ("operator", "settings"),
    [
        ("linear", {"normalize": False}),
        ("task_arithmetic", {}),
        ("ties", {"compat": "mergekit"}),
        ("nuslerp", {"flatten": False, "axis": 0}),
        ("nlerp", {"compat": "mergekit", "normalize": False}),
    ],
)
def test_what_is_written_reads_back_as_the_same_values(tmp_path, operator, settings, grouping):
    space = llama_space(("base", "a", "b"), has_base=True)
    from evomerge.core.grouping import assign_groups

    names = [tensor.spec.name for tensor in space.merged]
    n_groups = len(assign_groups(grouping, names)[0])
    rng = np.random.default_rng(0)
    params = {"weights": rng.random((n_groups, 3 if operator == "linear" else 2))}
    if operator == "task_arithmetic":
        params["lambda_"] = rng.random(n_groups)
    if operator == "ties":
        params["density"] = 0.1 + 0.9 * rng.random(n_groups)
    recipe = Recipe(operator, space.sources, params, grouping, None, settings)
    back = round_trip(recipe, space, tmp_path)
    assert back.operator == operator
    for param in params:
        wanted, got = values_by_name(recipe, space, param), values_by_name(back, space, param)
        assert got == wanted
    for key, value in settings.items():
        assert back.settings[key] == value


@pytest.mark.parametrize(
    ("operator", "has_base", "params", "settings"),
    [
        ("nlerp", False, {"weights": [[0.2, 0.9]]}, {"normalize": True}),
        ("karcher", False, {"weights": [[0.5, 0.5]]}, {"max_iter": 7, "tol": 1e-3}),
        ("karcher", False, {"weights": [[1.0, 1.0]]}, {"max_iter": 50, "tol": 1e-9}),
        ("model_stock", True, {}, {"filter_wise": True}),
        ("model_stock", True, {"multiplier": [1.0]}, {"filter_wise": False}),
    ],
)
def test_methods_of_the_sphere_read_back(tmp_path, operator, has_base, params, settings):
    space = llama_space(("base", "a", "b")[not has_base :], has_base=has_base)
    settings = {"compat": "mergekit", **settings}
    values = {key: np.array(value) for key, value in params.items()}
    back = round_trip(
        Recipe(operator, space.sources, values, "global", None, settings), space, tmp_path
    )
    assert back.operator == operator
    assert back.settings == settings
    if operator == "nlerp":
        np.testing.assert_array_equal(back.params["weights"], values["weights"])
    if operator == "karcher":
        assert len(set(back.params["weights"][0])) == 1


def test_a_value_per_layer_is_written_as_a_gradient(tmp_path):
    space = llama_space(("a", "b"), has_base=False)
    t = np.array([0.1, 0.1, 0.3, 0.2, 0.7, 0.7])  # embed, four layers, head
    recipe = Recipe("slerp", ("a", "b"), {"t": t}, "layer", None, {"compat": "mergekit"})
    body, _ = write_mergekit(recipe, space, REFS)
    assert body is not None
    assert body["parameters"]["t"] == [0.1, 0.3, 0.2, 0.7]
    back = round_trip(recipe, space, tmp_path)
    for name, value in values_by_name(recipe, space, "t").items():
        assert values_by_name(back, space, "t")[name] == pytest.approx(value, abs=1e-12)


def test_slerp_of_task_vectors_is_written_as_nuslerp():
    space = llama_space(("base", "a", "b"), has_base=True)
    recipe = Recipe("slerp", space.sources, {"t": np.array([0.25])})
    body, _ = write_mergekit(recipe, space, REFS)
    assert body is not None
    assert (body["merge_method"], body["base_model"]) == ("nuslerp", "org/base")
    assert [m["parameters"]["weight"] for m in body["models"]] == [0.75, 0.25]


@pytest.mark.parametrize(
    ("operator", "params", "settings", "reason"),
    [
        ("ties", {"density": [0.5]}, {}, "exempts"),
        ("ties", {"density": [0.5]}, {"vectors": "include"}, "over the model"),
        (
            "ties",
            {"density": [0.5]},
            {"vectors": "include", "threshold": "tensor", "sign": "unweighted"},
            "votes",
        ),
        ("ties", {"density": [0.5]}, {"compat": "mergekit", "divisor": "mean"}, "divide by 'mean'"),
        ("dare_linear", {"density": [0.5]}, {"compat": "mergekit"}, "seeded masks"),
        ("dare_ties", {"density": [1.0]}, {}, "exempts"),
        ("nlerp", {}, {}, "Nlerp differs"),
        ("nlerp", {}, {"compat": "mergekit", "space": "raw"}, "task vectors when it has a base"),
        ("karcher", {}, {"compat": "mergekit"}, "takes a base as one more"),
        ("norm_share", {}, {}, "no method like NormShare"),
    ],
)
def test_recipes_that_mergekit_would_compute_otherwise_are_not_written(
    operator, params, settings, reason
):
    space = llama_space(("base", "a", "b"), has_base=True)
    values = {"weights": np.array([[0.5, 0.3]]), **{k: np.array(v) for k, v in params.items()}}
    recipe = Recipe(operator, space.sources, values, "global", None, settings)
    body, why = write_mergekit(recipe, space, REFS)
    assert body is None
    assert reason in why


def test_frozen_tensors_that_mergekit_would_scale_are_not_written():
    names = ("model.layers.0.mlp.up_proj.weight", "model.norm.weight")
    specs = {n: TensorSpec(n, "F32", (4,)) for n in names}
    headers = [SourceHeader(s, "", specs, {names[0]: s, names[1]: "the same"}) for s in ("a", "b")]
    space = align(headers, has_base=False)
    settings = {"normalize": False}
    for weights, is_sayable in (([0.5, 0.6], False), ([0.4, 0.6], True)):
        params = {"weights": np.array([weights])}
        recipe = Recipe("linear", ("a", "b"), params, "global", None, settings)
        body, why = write_mergekit(recipe, space, REFS)
        assert (body is not None) == is_sayable
        assert is_sayable or "equal in all models" in why


def test_split_points_are_not_written():
    space = llama_space(("a", "b"), has_base=False)
    recipe = Recipe(
        "linear",
        ("a", "b"),
        {"weights": np.array([[1.0, 0.0], [0.0, 1.0]])},
        "segments",
        np.array([0, 7, space.n_elements]),
    )
    body, why = write_mergekit(recipe, space, REFS)
    assert body is None
    assert "split points" in why


def test_written_configs_compute_the_same_tensors(tmp_path):
    rng = torch.Generator().manual_seed(0)
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(3)] + ["model.norm.weight"]
    base = {n: torch.randn(6, 5, generator=rng) for n in names}
    for source in ("base", "a", "b"):
        noise = {n: 0.1 * torch.randn(6, 5, generator=rng) for n in names}
        save_file(
            {n: base[n] + (source != "base") * noise[n] for n in names},
            tmp_path / f"{source}.safetensors",
        )
    sources = {s: ModelFolder(s, tmp_path / f"{s}.safetensors") for s in ("base", "a", "b")}
    space = align([s.header() for s in sources.values()], has_base=True)
    params = {"t": np.array([0.2, 0.4, 0.8, 0.6])}
    recipe = Recipe("slerp", space.sources, params, "layer")
    body, reason = write_mergekit(recipe, space, {s: s for s in sources})
    assert body is not None, reason
    back = read_mergekit(write(tmp_path, yaml.safe_dump(body))).recipe(space)
    assert back.operator == "nuslerp"
    merged, again = (
        dict(materialize(recipe, space, sources)),
        dict(materialize(back, space, sources)),
    )
    for name in names:
        torch.testing.assert_close(again[name], merged[name], rtol=1e-6, atol=1e-6)


def test_weights_that_mergekits_karcher_ignores_and_multipliers_are_not_written():
    compat = {"compat": "mergekit"}
    space = llama_space(("a", "b"), has_base=False)
    recipe = Recipe("karcher", space.sources, {"weights": np.array([[0.5, 0.3]])}, settings=compat)
    assert "weighs all models alike" in write_mergekit(recipe, space, REFS)[1]
    space = llama_space(("base", "a", "b"), has_base=True)
    for settings, reason in ((compat, "no multiplier"), ({}, "ModelStock differs")):
        recipe = Recipe(
            "model_stock", space.sources, {"multiplier": np.array([1.2])}, settings=settings
        )
        assert reason in write_mergekit(recipe, space, REFS)[1]
