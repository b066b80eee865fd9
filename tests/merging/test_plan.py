import numpy as np
import pytest

from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError, UnknownNameError
from evomerge.merging.linear import Linear
from evomerge.merging.materialize import build_operators, plan_paths
from evomerge.merging.ties import Ties
from tests.merging.memory_source import make_sources, space_of

SPACE = space_of(make_sources(2))
ALL = SPACE.sources


def test_one_operator_per_group_with_its_row():
    weights = np.arange(12, dtype=float).reshape(4, 3) + 1.0
    recipe = Recipe("linear", ALL, {"weights": weights}, "layer", settings={"normalize": False})
    operators = build_operators(recipe, SPACE)
    assert operators == [Linear(weights=tuple(row), normalize=False) for row in weights.tolist()]


def test_defaults_fill_parameters_that_are_not_given():
    recipe = Recipe("ties", ALL, {"weights": np.ones((1, 2))})
    assert build_operators(recipe, SPACE) == [Ties(weights=(1.0, 1.0))]
    assert len(build_operators(Recipe("slerp", ALL, {}, "layer"), SPACE)) == 4


def test_segments_have_one_operator_each():
    n = SPACE.n_elements
    recipe = Recipe("linear", ALL, {"weights": np.ones((2, 3))}, "segments", np.array([0, 10, n]))
    assert len(build_operators(recipe, SPACE)) == 2


W = {"weights": np.ones((1, 2))}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe("ties", (*ALL, "ghost"), W), "recipe: 'ghost' is not a source"),
        (Recipe("ties", ("base", "e1", "e1"), W), "recipe: sources repeat"),
        (Recipe("ties", ("base",), W), "recipe: a base alone is no merge"),
        (Recipe("ties", ("e1", "e2"), W), "recipe: ties works on task vectors and needs the base"),
        (Recipe("ties", ("e1", "base", "e2"), W), "needs the base first"),
        (
            Recipe("ties", ALL, {"weight": np.ones((1, 2))}),
            "recipe: params.weight is not .*'weights'",
        ),
        (Recipe("ties", ALL, {**W, "compat": np.ones(1)}), "params.compat is a setting"),
        (Recipe("ties", ALL, {"density": np.ones(1)}), "params.weights is missing"),
        (Recipe("ties", ALL, {"weights": np.ones((1, 3))}), r"params.weights must be \(1, 2\)"),
        (Recipe("ties", ALL, {"weights": np.ones(1)}), r"params.weights must be \(1, 2\)"),
        (Recipe("ties", ALL, {**W, "density": np.ones((1, 2))}), r"params.density must be \(1,\)"),
        (Recipe("ties", ALL, W, "layer"), "params have 1 rows, grouping 'layer' makes 4 groups"),
        (Recipe("ties", ALL, W, "layers"), "'layers' is not a grouping"),
        (
            Recipe("ties", ALL, W, settings={"densty": 0.1}),
            "recipe: settings.densty is not a setting",
        ),
        (Recipe("ties", ALL, W, settings={"density": 0.1}), "settings.density is a parameter"),
        (Recipe("ties", ALL, W, settings={"sign": "wieghted"}), "recipe: sign is .*'weighted'"),
        (
            Recipe(
                "ties",
                ALL,
                {"weights": np.ones((4, 2)), "density": np.array([0.1, 0.1, 2, 1])},
                "layer",
            ),
            "recipe: group 'layer.1': density is 2, must be at most 1",
        ),
        (
            Recipe("ties", ALL, W, "segments", np.array([0, SPACE.n_elements])),
            "cannot be applied to seg",
        ),
        (
            Recipe("linear", ALL, {"weights": np.ones((1, 3))}, "segments", np.array([0, 7])),
            "recipe: breaks end at 7, the models have",
        ),
        (Recipe("linear", ALL, {"weights": np.zeros((1, 3))}), "recipe: linear: the weights"),
        (Recipe("nuslerp", ("base", "e1"), {"weights": np.ones((1, 1))}), "two experts, got 1"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(recipe, message):
    with pytest.raises(ConfigError, match=message):
        build_operators(recipe, SPACE)


def test_wrong_numbers_of_models_are_refused():
    space = space_of(make_sources(3))
    with pytest.raises(
        ConfigError, match="recipe: slerp merges exactly 2 models, got 3 experts and a base"
    ):
        build_operators(Recipe("slerp", space.sources, {"t": np.array([0.5])}), space)
    with pytest.raises(ConfigError, match="got 1 experts"):
        build_operators(Recipe("slerp", ("e1",), {"t": np.array([0.5])}), space)
    for sources in (("base", "e1"), ("e2", "e3"), ("base", "e1", "e3")):
        assert build_operators(Recipe("slerp", sources, {}), space)


def test_an_unknown_operator_names_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'slerp'"):
        build_operators(Recipe("slrep", ALL, {}), SPACE)


def test_paths_say_what_happens_to_every_tensor():
    sources = make_sources(2)
    for source in sources.values():
        source.tensors = {
            **source.tensors,
            "model.layers.0.mlp.down_proj.weight": sources["base"].tensors["model.norm.weight"],
        }
    space = space_of(sources)
    paths = plan_paths(Recipe("ties", space.sources, W), space)
    assert list(paths) == [tensor.spec.name for tensor in space.tensors]
    assert paths["model.layers.0.mlp.down_proj.weight"] == "copied: identical in every source"
    assert paths["model.norm.weight"].startswith("fallback: at most one axis")
    assert paths["model.layers.1.scale"].startswith("fallback: ")
    assert paths["model.embed_tokens.weight"] == "merged"
    mergekit = Recipe("ties", space.sources, W, settings={"compat": "mergekit"})
    assert plan_paths(mergekit, space)["model.norm.weight"] == "merged"
    linear = Recipe(
        "linear",
        space.sources,
        {"weights": np.ones((2, 3))},
        "segments",
        np.array([0, 9, space.n_elements]),
    )
    assert set(plan_paths(linear, space).values()) == {
        "merged",
        "copied: identical in every source",
    }
