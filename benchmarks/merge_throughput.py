"""What one candidate costs: in place, against this machine's memory bus, and against mergekit.

    export OMP_NUM_THREADS=1
    python benchmarks/merge_throughput.py --size 125m --experts 4 --mergekit /path/to/python

In place: every method merges candidate after candidate (weights and density differ) into the
parameters of one resident model. The ceiling is a weighted sum of the same source arrays, the
best of several implementations, timed in turn with the methods in the same process. Figures are
medians, in CPU seconds of all threads with one thread, else in seconds on the clock.

Disk to disk: a hot process of ours and one of mergekit's Python API (its own interpreter, where
it is installed) make the same merge from bfloat16 folders to a bfloat16 folder. Ours opens, checks
and hashes the models and derives all statistics every time. `ratio_to_mergekit` is its CPU
seconds over ours in place, `disk_ratio_to_mergekit` over ours from disk to disk. A mergekit
merge that passes `--limit` CPU seconds is ended there, and its ratios are lower bounds.

The last line of stdout is one JSON object whose figures are maps by method.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch

from benchmarks.merge_cases import CASES
from benchmarks.merge_from_disk import Figures, Sides, time_from_disk
from benchmarks.merge_in_place import open_bench, time_in_place
from benchmarks.side_process import Side
from benchmarks.synthetic_models import SIZES, build_models
from evomerge.storage.derived_cache import DerivedCache


def find_mergekit(given: str | None) -> str | None:
    """Return the interpreter that has mergekit, or None."""
    if given is not None:
        return given
    return sys.executable if importlib.util.find_spec("mergekit") else None


def _ratios_in_place(figures: Figures) -> None:
    """Add mergekit's CPU seconds over ours in place, where both were timed."""
    theirs, ours = figures.get("mergekit_cpu_seconds", {}), figures.get("cpu_ms", {})
    figures["ratio_to_mergekit"] = {
        name: round(1e3 * seconds / ours[name], 2)
        for name, seconds in theirs.items()
        if name in ours
    }


def show(figures: Figures, names: Sequence[str]) -> None:
    columns = ("ms", "gb_per_s", "ratio_to_ceiling", "install_ms", "ratio_to_mergekit")
    columns += ("disk_ratio_to_mergekit", "peak_rss_mb", "mergekit_peak_rss_mb")
    print(f"{'':18}" + "".join(f"{column:>24}" for column in columns))
    for name in names:
        cells = (figures.get(column, {}).get(name) for column in columns)
        shown = ("" if cell is None else f"{cell:.2f}" for cell in cells)
        print(f"{name:18}" + "".join(f"{cell:>24}" for cell in shown))
    print(f"ceiling, GB/s: {figures.get('ceiling_gb_per_s', {})}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), default="125m")
    parser.add_argument("--experts", type=int, default=4, help="at least 2")
    parser.add_argument("--operators", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--mergekit", metavar="PYTHON", help="interpreter that has mergekit")
    parser.add_argument("--limit", type=float, default=300.0, help="CPU s per mergekit merge")
    parser.add_argument("--cold", nargs="*", default=["task_arithmetic"], choices=list(CASES))
    parser.add_argument("--no-disk", action="store_true", help="only merges in place")
    parser.add_argument("--no-in-place", action="store_true", help="only merges to disk")
    parser.add_argument("--dir", type=Path, help="where models are kept; else made anew")
    return parser.parse_args()


def measure(args: argparse.Namespace, folder: Path) -> Figures:
    """Return all figures; models and merges are under `folder`."""
    cases = [CASES[name] for name in args.operators]
    models = build_models(folder, args.size, args.experts)
    figures: Figures = {
        "size": args.size,
        "experts": args.experts,
        "threads": args.threads,
        "clock": "cpu" if args.threads == 1 else "wall",
        "n_elements": models.n_elements,
    }
    if not args.no_disk:
        tiny = build_models(folder, "tiny", args.experts)
        python = find_mergekit(args.mergekit)
        theirs = Side(python, "benchmarks.mergekit_side", threads=args.threads) if python else None
        ours = Side(sys.executable, "benchmarks.export_side", threads=args.threads)
        with (
            tempfile.TemporaryDirectory(dir=folder) as out,
            closing(Sides(ours, theirs, Path(out), tiny, args.limit)) as sides,
        ):
            figures |= time_from_disk(sides, models, cases, args.cold)
    if not args.no_in_place:
        torch.set_num_threads(args.threads)
        bench = open_bench(models, args.threads)
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            kept = DerivedCache(Path(cache))
            figures |= time_in_place(bench, cases, args.repetitions, kept)
    _ratios_in_place(figures)
    return figures


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory() as made:
        figures = measure(args, args.dir or Path(made))
    show(figures, args.operators)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
