"""Which packages, beside those of every run, scores come from, and which are missing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata

from evomerge.errors import ConfigError, first_line
from evomerge.evaluation.evaluator import Evaluator
from evomerge.evaluation.part import whole_of
from evomerge.evaluation.vllm_engine import vllm_version

_OF_DEVELOPERS = frozenset({"docs", "fuzz", "test"})  # extras that users are not told of


def package_versions(evaluators: Iterable[Evaluator]) -> dict[str, str]:
    """Return distribution -> version of what evaluators need beside transformers, by name.

    An evaluator names its own as `packages`, a tuple of distributions.

    Raises:
        ConfigError: One is not installed.
    """
    found: dict[str, str] = {}
    for evaluator in map(whole_of, evaluators):
        for name in getattr(evaluator, "packages", ()):
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                raise ConfigError(
                    f"evaluator {type(evaluator).__name__} needs the package {name}; install it"
                ) from None
        if getattr(evaluator, "engine", None) is not None:
            found |= vllm_version()
    return dict(sorted(found.items()))


def what_to_install(error: ImportError) -> str:
    """Return what an import lacks and what brings it, in one line.

    A package that an extra of evomerge brings is named with that extra.
    """
    module = _plain((error.name or "").partition(".")[0])
    try:
        lines = metadata.requires("evomerge") or ()
    except metadata.PackageNotFoundError:  # a checkout on PYTHONPATH has no metadata
        lines = ()
    extras = {
        _plain(found[1]): found[2]
        for line in lines
        if (found := re.match(r"([\w.-]+).*extra == '([^']+)'", line))
        and found[2] not in _OF_DEVELOPERS
    }
    how = f": pip install 'evomerge[{extras[module]}]'" if module in extras else ""
    return f"{first_line(error)}; install that package where the workers run{how}"


def _plain(name: str) -> str:
    """Return a module's or distribution's name in the form they have in common."""
    return re.sub(r"[-_.]+", "-", name).lower()
