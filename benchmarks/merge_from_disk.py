"""Timing merges from disk to disk: a hot process of ours and one of mergekit's."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.merge_cases import MergeCase
from benchmarks.side_process import (
    Job,
    Side,
    SideRun,
    cached_share,
    drop_from_page_cache,
    read_into_page_cache,
)
from benchmarks.synthetic_models import ModelSet

Figures = dict[str, Any]


@dataclass(eq=False)
class Sides:
    """The two hot processes, and where they write.

    Attributes:
        ours: Runs `benchmarks.export_side`.
        mergekit: Runs `benchmarks.mergekit_side`; None without mergekit.
        out: Folder for the merged models.
        tiny: A small set; each process merges it first, so that it is hot for the method.
        limit: CPU seconds at which a merge of mergekit's is ended.
    """

    ours: Side
    mergekit: Side | None
    out: Path
    tiny: ModelSet
    limit: float

    def run_ours(self, case: MergeCase, models: ModelSet) -> SideRun:
        """Return what our merge from disk to disk costs."""
        self.ours.run(self._our_job(case, self.tiny))
        return self.ours.run(self._our_job(case, models))

    def run_mergekit(self, case: MergeCase, models: ModelSet) -> SideRun | None:
        """Return what mergekit's merge costs; None when it is not here or has no such method."""
        if self.mergekit is None or case.mergekit is None:
            return None
        self.mergekit.run(self._mergekit_job(case, self.tiny))
        return self.mergekit.run(self._mergekit_job(case, models), cpu_limit=self.limit)

    def close(self) -> None:
        """End both processes: a mapped file cannot leave the page cache."""
        self.ours.close()
        if self.mergekit is not None:
            self.mergekit.close()

    def _our_job(self, case: MergeCase, models: ModelSet) -> Job:
        folders = [str(folder) for folder in models.folders]
        return {"case": case.name, "folders": folders, "out": str(self.out / "ours")}

    def _mergekit_job(self, case: MergeCase, models: ModelSet) -> Job:
        folders = {folder.name: str(folder) for folder in models.folders}
        config = case.mergekit_config(len(models.experts), folders)
        return {"config": config, "out": str(self.out / "mergekit")}


def time_from_disk(
    sides: Sides, models: ModelSet, cases: Sequence[MergeCase], cold: Sequence[str]
) -> Figures:
    """Return the figures of merges from disk to disk, with warm and with cold page cache."""
    home = models.base.parent
    figures: Figures = {"mergekit_is_lower_bound": [], "disk": {}}
    for case in cases:
        runs: dict[str, SideRun | None] = {}
        read_into_page_cache(home)
        runs["ours"] = sides.run_ours(case, models)
        runs["mergekit"] = sides.run_mergekit(case, models)
        if case.name in cold:
            for side, run in (("ours", sides.run_ours), ("mergekit", sides.run_mergekit)):
                sides.close()
                drop_from_page_cache(home)
                figures["cached_before_cold"] = cached_share(home)
                runs[f"{side} cold"] = run(case, models)
        _add_disk_figures(figures, case, runs)
        print(f"{case.name}: {figures['disk'][case.name]}", file=sys.stderr, flush=True)
    return figures


def _add_disk_figures(
    figures: Figures, case: MergeCase, runs: Mapping[str, SideRun | None]
) -> None:
    figures["disk"][case.name] = {side: _shown(run) for side, run in runs.items() if run}
    ours, theirs = runs["ours"], runs["mergekit"]
    assert ours is not None
    values = {"peak_rss_mb": ours.peak_rss_mb, "peak_anonymous_mb": ours.peak_anonymous_mb}
    if theirs is not None:
        values |= {
            "mergekit_peak_rss_mb": theirs.peak_rss_mb,
            "mergekit_cpu_seconds": theirs.cpu_seconds,
            "disk_ratio_to_mergekit": theirs.cpu_seconds / ours.cpu_seconds,
            "disk_wall_ratio_to_mergekit": theirs.wall_seconds / ours.wall_seconds,
        }
        if theirs.is_cut_off:
            figures["mergekit_is_lower_bound"].append(case.name)
    for key, value in values.items():
        figures.setdefault(key, {})[case.name] = round(value, 4)


def _shown(run: SideRun) -> dict[str, float]:
    shown = {
        "cpu_seconds": run.cpu_seconds,
        "wall_seconds": run.wall_seconds,
        "peak_rss_mb": run.peak_rss_mb,
        "peak_anonymous_mb": run.peak_anonymous_mb,
        **run.facts,
    }
    return {key: round(value, 4) for key, value in shown.items()}
