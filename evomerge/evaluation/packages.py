"""Which packages, beside those of every run, scores come from."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata

from evomerge.errors import ConfigError
from evomerge.evaluation.evaluator import Evaluator
from evomerge.evaluation.part import whole_of
from evomerge.evaluation.vllm_engine import vllm_version


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
