"""Mappings with `name:` -> registered dataclasses."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from evomerge.config.construct import construct
from evomerge.errors import ConfigError
from evomerge.registry import Registry

shapes = Registry("shape", "evomerge.no_such_group")


@shapes.register("circle")
@dataclass(frozen=True, kw_only=True)
class Circle:
    radius: float
    style: Literal["full", "dashed"] = "full"
    labels: tuple[str, ...] | None = None
    picture: Path | None = None
    rows: tuple[int, int] | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)
    hidden: int = field(default=3, init=False)

    def __post_init__(self):
        if self.radius < 0:
            raise ConfigError(f"circle: radius is {self.radius}, must be at least 0")
        if self.radius > 1e9:
            raise ValueError("too large to draw")


def build(base_dir=Path("/base"), **values):
    return construct(shapes, values, "figures.0", base_dir)


def test_the_object_and_the_mapping_with_every_default():
    built, resolved = build(name="circle", radius=2)
    assert built == Circle(radius=2.0)
    assert resolved == {
        "name": "circle",
        "radius": 2.0,
        "style": "full",
        "labels": None,
        "picture": None,
        "rows": None,
        "extras": {},
    }


def test_the_resolved_mapping_builds_the_same_object():
    values = {
        "radius": 1,
        "labels": ["a"],
        "picture": "p.png",
        "rows": [0, 5],
        "extras": {"k": [1]},
    }
    built, resolved = build(name="circle", **values)
    again, twice = construct(shapes, resolved, "figures.0", Path("/elsewhere"))
    assert (again, twice) == (built, resolved)


def test_paths_start_at_the_configs_folder():
    assert build(name="circle", radius=1, picture="p/q.png")[0].picture == Path("/base/p/q.png")
    assert build(name="circle", radius=1, picture="/abs.png")[0].picture == Path("/abs.png")
    assert build(name="circle", radius=1, picture="../up.png")[0].picture == Path("/up.png")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "figures.0: needs a `name:`. Known: circle."),
        (
            {"name": "circel"},
            "figures.0.name: 'circel' is not a known shape. Did you mean 'circle'?",
        ),
        ({"name": ["circle"]}, "figures.0.name: "),
        ({"name": "circle"}, "figures.0.radius is missing; 'circle' needs it"),
        (
            {"name": "circle", "radius": 1, "stile": "full"},
            r"figures.0.stile is not a parameter of 'circle'. Did you mean 'style'\? Known: extras",
        ),
        ({"name": "circle", "radius": 1, "hidden": 4}, "figures.0.hidden is not a parameter"),
        ({"name": "circle", "radius": "wide"}, "figures.0.radius: .*valid number.*got 'wide'"),
        (
            {"name": "circle", "radius": 1, "style": "dotted"},
            "figures.0.style: .*'dashed'.*'dotted'",
        ),
        ({"name": "circle", "radius": 1, "labels": "abc"}, "figures.0.labels: .*valid tuple"),
        ({"name": "circle", "radius": 1, "labels": [1]}, "figures.0.labels: 0: .*valid string"),
        ({"name": "circle", "radius": 1, "rows": [1]}, "figures.0.rows: "),
        ({"name": "circle", "radius": 1, "picture": 5}, "figures.0.picture: "),
        ({"name": "circle", "radius": 1, "extras": [1]}, "figures.0.extras: .*mapping"),
        ({"name": "circle", "radius": -1}, "figures.0: circle: radius is -1.0, must be at least 0"),
        ({"name": "circle", "radius": 1e10}, "figures.0: too large to draw"),
    ],
)
def test_what_does_not_fit_is_named(values, says):
    with pytest.raises(ConfigError, match=says):
        build(**values)


def test_messages_are_one_line_and_short():
    with pytest.raises(ConfigError) as caught:
        build(name="circle", radius=list(range(1000)))
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


def test_a_place_is_not_said_twice():
    @shapes.register("square")
    @dataclass(kw_only=True)
    class Square:
        side: int = 1

        def __post_init__(self):
            raise ConfigError("figures.0.side is odd")

    with pytest.raises(ConfigError, match=r"^figures.0.side is odd$"):
        build(name="square")


@dataclass(frozen=True, kw_only=True)
class Inner:
    folder: Path
    size: int = 3

    def __post_init__(self):
        if self.size < 1:
            raise ConfigError(f"size is {self.size}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner | None = None


def test_a_field_may_be_a_section_of_its_own(tmp_path):
    registry = Registry("thing", "evomerge.test_sections")
    registry.register("outer")(Outer)
    body = {"name": "outer", "inner": {"folder": "data"}}
    built, resolved = construct(registry, body, "here", tmp_path)
    assert built == Outer(inner=Inner(folder=tmp_path / "data"))
    assert resolved["inner"] == {"folder": str(tmp_path / "data"), "size": 3}
    assert construct(registry, resolved, "here", Path("/elsewhere"))[0] == built
    assert construct(registry, {"name": "outer", "inner": None}, "here", tmp_path)[0] == Outer()
    for inner, says in (
        ({"folder": "d", "sise": 1}, r"here.inner.sise is not a parameter.*Did you mean 'size'"),
        ({"size": 1}, "here.inner.folder is missing"),
        ({"folder": "d", "size": "big"}, "here.inner.size: .*integer"),
        ({"folder": "d", "size": 0}, "here.inner: size is 0, expected at least 1"),
        ("data", "here.inner: "),
    ):
        with pytest.raises(ConfigError, match=says):
            construct(registry, {"name": "outer", "inner": inner}, "here", tmp_path)
