"""Names -> classes: built in, registered, and announced by other packages."""

from importlib import metadata

import pytest

from evomerge.algorithms.algorithm import search_algorithms
from evomerge.errors import ConfigError, UnknownNameError
from evomerge.evaluation.evaluator import evaluators
from evomerge.merging.operator import merge_operators
from evomerge.registry import Registry


class Plugin:
    """What an installed package would bring."""


@pytest.fixture
def colours():
    registry = Registry("colour", "evomerge.test_colours")
    registry.register("red")(type("Red", (), {}))
    registry.register("green")(type("Green", (), {}))
    return registry


@pytest.fixture
def installed(monkeypatch):
    """Pretend that a package announces `blue` in the test's entry-point group."""
    point = metadata.EntryPoint("blue", f"{__name__}:Plugin", "evomerge.test_colours")

    def entry_points(group, name=None):
        return [p for p in [point] if p.group == group and name in (None, p.name)]

    monkeypatch.setattr("evomerge.registry.metadata.entry_points", entry_points)


def test_a_registered_class_is_found_by_name_and_gives_it_back(colours):
    red = colours.get("red")
    assert red.__name__ == "Red"
    assert colours.name_of(red) == "red"
    assert colours.names() == ["green", "red"]


def test_an_unknown_name_lists_the_known_and_the_nearest(colours):
    with pytest.raises(
        UnknownNameError, match=r"'rad' is not a known colour. Did you mean 'red'\?"
    ):
        colours.get("rad")
    with pytest.raises(UnknownNameError, match=r"'xyz' is not a known colour. Known: green, red\."):
        colours.get("xyz")


def test_a_second_class_of_one_name_is_refused_and_the_first_kept(colours):
    first = colours.get("red")
    with pytest.raises(ConfigError, match="colour 'red' is already registered"):
        colours.register("red")(type("Other", (), {}))
    assert colours.get("red") is first
    assert colours.register("red")(first) is first, "a module imported twice is no conflict"


def test_a_class_nobody_registered_has_no_name(colours):
    with pytest.raises(UnknownNameError, match="Plugin is not a registered colour"):
        colours.name_of(Plugin)


def test_plug_ins_are_listed_and_loaded_on_first_use(colours, installed):
    assert colours.names() == ["blue", "green", "red"]
    assert colours.get("blue").__name__ == "Plugin"
    assert colours.name_of(colours.get("blue")) == "blue"


def test_registries_do_not_share_names(colours):
    other = Registry("taste", "evomerge.test_tastes")
    assert other.names() == []


@pytest.mark.parametrize(
    "registry", [merge_operators, search_algorithms, evaluators], ids=lambda r: r.kind
)
def test_the_built_in_names(registry):
    built_in = {
        "merge method": {
            "linear",
            "task_arithmetic",
            "slerp",
            "nuslerp",
            "ties",
            "dare_linear",
            "dare_ties",
        },
        "search algorithm": {"m2n2", "nevergrad", "cma_es", "nsga2", "tpe", "optuna", "random"},
        "evaluator": {"classification", "multiple_choice", "exact_match", "perplexity", "python"},
    }
    assert built_in[registry.kind] <= set(registry.names())
    for name in registry.names():
        cls = registry.get(name)
        assert cls.__doc__
        assert registry.name_of(cls) == name
