"""`merge: {any_of: [...]}`: several merge methods, of which the search chooses.

Each entry of `any_of` is what `merge:` is for one method, or its name alone. Keys beside `any_of`
hold for every entry that does not give its own:

    merge:
      groups: layer
      any_of:
        - {name: ties, density: search}
        - {name: dare_ties, density: [0.3, 0.9]}
        - {name: linear, groups: global}

A method may stand there twice, with other parameters or groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from evomerge.core.choice_space import ChoiceSpace
from evomerge.core.search_space import SearchSpace
from evomerge.errors import ConfigError

ANY_OF = "any_of"

BuildOne = Callable[[Mapping[str, Any]], tuple[SearchSpace, dict[str, Any]]]


def method_text(body: Mapping[str, Any]) -> str:
    """Return the methods of a checked `merge:` section for people, as "ties or slerp"."""
    if ANY_OF not in body:
        return str(body["name"])
    names = (_entry(item)["name"] for item in body[ANY_OF])
    return " or ".join(dict.fromkeys(str(name) for name in names))


def build_choice(
    body: Mapping[str, Any], build_one: BuildOne
) -> tuple[ChoiceSpace, dict[str, Any]]:
    """Return the space of a section with `any_of`, and the section with all defaults.

    Args:
        body: The section.
        build_one: Returns the same for a section of one method.

    Raises:
        ConfigError: It is no list of two methods or more, or one of them is wrong; names the entry.
    """
    entries = body[ANY_OF]
    if not isinstance(entries, list) or len(entries) < 2:
        raise ConfigError(
            f"merge.{ANY_OF} is {entries!r}; expected a list of two merge methods or more, such as "
            "[{name: ties, density: search}, {name: linear}]"
        )
    shared = {key: value for key, value in body.items() if key != ANY_OF}
    if "name" in shared:
        raise ConfigError(f"merge: give `name` or `{ANY_OF}`, not both")
    spaces: list[SearchSpace] = []
    resolved: list[dict[str, Any]] = []
    for index, item in enumerate(entries):
        where = f"merge.{ANY_OF}.{index}"
        own = _entry(item)
        if not isinstance(own, Mapping) or ANY_OF in own:
            raise ConfigError(f"{where} is {item!r}; expected the name of a merge method, or a "
                              "mapping with `name:` and its parameters")  # fmt: skip
        try:
            space, full = build_one({**shared, **own})
        except ConfigError as error:
            text = str(error)
            inside = text.removeprefix("merge.").removeprefix("merge: ")
            dot = "." if text.startswith("merge.") else ": "
            raise ConfigError(f"{where}{dot}{inside}") from None
        spaces.append(space)
        resolved.append(full)
    return ChoiceSpace(tuple(spaces), _labels(spaces)), {ANY_OF: resolved}


def _entry(item: Any) -> Any:
    return {"name": item} if isinstance(item, str) else item


def _labels(spaces: list[SearchSpace]) -> tuple[str, ...]:
    """Return the operators' names, numbered from the second of a kind on: ties, ties_2."""
    names = [space.operator for space in spaces]
    counts = [names[: index + 1].count(name) for index, name in enumerate(names)]
    return tuple(name if n == 1 else f"{name}_{n}" for name, n in zip(names, counts, strict=True))
