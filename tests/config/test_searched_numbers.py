import numpy as np
import pytest

from evomerge.config.searched_numbers import MAX_NUMBERS, SearchedNumbers
from evomerge.core.recipe import Recipe

TENSORS = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(3)]
WEIGHTS = {"low": -0.5, "high": 1.0, "initial": 0.3}
ONE = {"name": "ties", "groups": "layer", "weights": WEIGHTS, "density": 0.2, "normalize": True}


def ties(groups=3, value=0.5, grouping="layer", breaks=None) -> Recipe:
    params = {"weights": np.full((groups, 2), value), "density": np.full(groups, 0.2)}
    return Recipe("ties", ("base", "x", "y"), params, grouping, breaks)


def test_a_number_per_group_and_source_with_its_range():
    found = SearchedNumbers(ONE, TENSORS).of(ties())
    assert [item.name for item in found] == [
        f"weights/{source}/layer.{layer}" for source in ("x", "y") for layer in range(3)
    ]
    assert {(item.value, item.low, item.high) for item in found} == {(0.5, -0.5, 1.0)}


def test_one_group_needs_no_name():
    found = SearchedNumbers(ONE | {"groups": "global"}, TENSORS).of(ties(1, grouping="global"))
    assert [item.name for item in found] == ["weights/x", "weights/y"]


def test_too_many_numbers_become_means():
    many = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(MAX_NUMBERS)]
    recipe = Recipe(
        "ties",
        ("base", "x", "y"),
        {"weights": np.tile(np.linspace(0, 1, MAX_NUMBERS)[:, None], 2)},
        "layer",
    )
    found = SearchedNumbers(ONE, many).of(recipe)
    assert [item.name for item in found] == ["weights/x (mean)", "weights/y (mean)"]
    assert found[0].value == pytest.approx(0.5)


def test_segments_count_by_their_length():
    body = {"name": "linear", "groups": "global", "weights": WEIGHTS}
    recipe = Recipe(
        "linear", ("x", "y"), {"weights": np.array([[1.0, 0.0], [0.0, 1.0]])},
        "segments", np.array([0, 10, 40]),
    )  # fmt: skip
    found = SearchedNumbers(body, TENSORS).of(recipe)
    assert [item.value for item in found] == [0.25, 0.75]


def test_a_founder_widens_a_range_and_other_methods_are_left_out():
    numbers = SearchedNumbers(ONE, TENSORS)
    assert numbers.of(ties(value=2.0))[0].high == 2.0
    other = Recipe("linear", ("base", "x", "y"), {"weights": np.ones((1, 3))})
    assert numbers.of(other) == ()


def test_the_choice_of_a_method_is_a_choice():
    several = {"any_of": [ONE, {"name": "linear", "groups": "global", "weights": WEIGHTS}]}
    numbers = SearchedNumbers(several, TENSORS)
    choice, *rest = numbers.of(ties())
    assert (choice.value, choice.choices) == ("ties", ("ties", "linear", "other"))
    assert len(rest) == 6
    other = Recipe("slerp", ("x", "y"), {"t": np.ones(1)})
    assert [item.value for item in numbers.of(other)] == ["other"]


def test_layer_scales_are_numbers_too():
    scaled = {"name": "ties", "groups": "global", "layer_scale": {"alpha": 0.3, "beta": WEIGHTS}}
    recipe = Recipe(
        "ties", ("base", "x"),
        {"weights": np.ones((1, 1)), "layer_scale.alpha": np.ones(1), "layer_scale.beta": np.zeros(1)},
    )  # fmt: skip
    (item,) = SearchedNumbers(scaled, TENSORS).of(recipe)
    assert (item.name, item.value) == ("layer_scale.beta", 0.0)
