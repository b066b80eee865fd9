"""Names in a config file -> the classes they mean.

Built-ins register themselves with a decorator when their module is imported;
the modules are listed by hand in each package's `__init__`, never found by scanning.
Other packages add theirs through an entry-point group.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import TypeVar

from evomerge.errors import ConfigError, UnknownNameError, nearest

T = TypeVar("T")


class Registry:
    """One kind of extension (merge methods, algorithms, evaluators) by name."""

    def __init__(self, kind: str, entry_point_group: str) -> None:
        """Args: kind: noun for messages; entry_point_group: where plug-ins announce themselves."""
        self.kind = kind
        self.entry_point_group = entry_point_group
        self._classes: dict[str, type] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Return a class decorator that makes the class available as `name`."""

        def decorate(cls: type[T]) -> type[T]:
            if name in self._classes and self._classes[name] is not cls:
                raise ConfigError(f"{self.kind} {name!r} is already registered")
            self._classes[name] = cls
            return cls

        return decorate

    def names(self) -> list[str]:
        """Return every known name, sorted, plug-ins included."""
        plugins = metadata.entry_points(group=self.entry_point_group)
        return sorted({*self._classes, *(point.name for point in plugins)})

    def get(self, name: str) -> type:
        """Return the class called `name`.

        Raises:
            UnknownNameError: No built-in or installed plug-in has that name, or its cannot be
                imported.
        """
        if name in self._classes:
            return self._classes[name]
        for point in metadata.entry_points(group=self.entry_point_group, name=name):
            try:
                loaded: type = point.load()
            except Exception as error:  # a package's own code can raise anything
                package = (
                    "" if point.dist is None else f" of {point.dist.name} {point.dist.version}"
                )
                raise UnknownNameError(
                    f"{self.kind} {name!r}{package} cannot be loaded from {point.value!r}: "
                    f"{type(error).__name__}: {error}. Update or remove that package."
                ) from error
            self._classes[name] = loaded
            return loaded
        known = self.names()
        raise UnknownNameError(
            f"{name!r} is not a known {self.kind}.{nearest(name, known)} Known: {', '.join(known)}."
        )

    def name_of(self, cls: type) -> str:
        """Return the name `cls` is registered under."""
        for name, registered in self._classes.items():
            if registered is cls:
                return name
        raise UnknownNameError(f"{cls.__name__} is not a registered {self.kind}")
