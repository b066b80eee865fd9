"""Fill the cache for a config before any search: what `evomerge prepare` does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from evomerge.config.build import (
    build_search_space,
    idle_kinds,
    needs_span,
    operators_of,
    resolve_config,
)
from evomerge.config.cache import open_cache
from evomerge.config.models import OpenModels, open_models
from evomerge.config.schema import RunConfig
from evomerge.config.transforms import VirtualGroup
from evomerge.core.choice_space import Space
from evomerge.core.linear_span import block_size
from evomerge.merging.cache import TensorCache
from evomerge.merging.cached import Filled, Statistic
from evomerge.merging.derived import statistics_for
from evomerge.merging.grams import BlockGrams
from evomerge.storage.derived_cache import DerivedCache


@dataclass(frozen=True)
class KindDone:
    """One kind of result that is in the cache now.

    Attributes:
        kind: Its name.
        done: Items that were computed.
        reused: Items that were there.
        n_bytes: Size of all of them.
        seconds: Time it took.
    """

    kind: str
    done: int
    reused: int
    n_bytes: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Preparation:
    """All that is to be in the cache for one config.

    Attributes:
        cache: The cache.
        statistics: The kinds, in the order they are computed.
    """

    cache: DerivedCache
    statistics: tuple[Statistic, ...]

    def run(self) -> Iterator[KindDone]:
        """Compute what is missing, one kind after the other, and yield each when it is done.

        May be stopped at any instant: every item that was written is there the next time.

        Raises:
            ConfigError: The budget is too small.
            PreflightError: The cache cannot be written.
        """
        for statistic in self.statistics:
            started = time.perf_counter()
            filled = list(statistic.fill())
            n_new = sum(item.is_new for item in filled)
            n_bytes = sum(item.n_bytes for item in filled)
            seconds = time.perf_counter() - started
            yield KindDone(statistic.kind, n_new, len(filled) - n_new, n_bytes, seconds)
        self.cache.fit_budget()  # what was there already may take more than it may


def plan_preparation(
    config: RunConfig,
    base_dir: Path,
    *,
    budget_bytes: int | None = None,
    every_kind: bool = False,
) -> Preparation:
    """Check a config and its models and say what its search will want from the cache.

    Args:
        config: The config.
        base_dir: Folder that its relative paths start from.
        budget_bytes: Most bytes the cache may take on disk; None: no limit.
        every_kind: All kinds, whatever the merge method.

    Raises:
        ConfigError: The config is wrong.
        PreflightError: The models cannot be used.
    """
    resolved = resolve_config(config, base_dir)
    cache = open_cache(resolved.runtime.cache, budget_bytes)
    models = open_models(resolved, cache=cache)
    space, _ = build_search_space(resolved, models, None)
    wanted: list[Statistic] = []
    if models.layers is None:  # sequences of layers need none
        wanted = _statistics(resolved, models, cache, None if every_kind else space)
    # Transforms first: their results are sources that the statistics are of.
    return Preparation(cache, (*map(_TransformItems, models.virtual), *wanted))


def _statistics(
    config: RunConfig,
    models: OpenModels,
    cache: TensorCache,
    space: Space | None,
) -> list[Statistic]:
    """Return the kinds that a space's merge methods and founders need; None: every kind."""
    operators = None if space is None else operators_of(space)
    idle = () if space is None else idle_kinds(space)
    found = [
        statistic
        for statistic in statistics_for(operators, models.space, models.sources, cache)
        if statistic.kind not in idle
    ]
    if space is None or needs_span(config):
        block = block_size(models.space.n_elements)
        found.append(BlockGrams(models.space, models.sources, block, cache))
    return found


class _TransformItems:
    """The task vectors of one entry of `transforms:`, as a kind to fill."""

    def __init__(self, group: VirtualGroup) -> None:
        self._run = group.run
        self.kind = f"transform {group.label}"

    def fill(self) -> Iterator[Filled]:
        """Find or compute the task vectors of every tensor."""
        for name in self._run.touched:
            is_new = not self._run.is_kept(name)
            deltas = self._run.deltas(name)
            yield Filled(name, is_new, sum(delta.nbytes for delta in deltas))
