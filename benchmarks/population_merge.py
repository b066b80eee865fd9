"""Merging P candidates while reading the sources once, against P passes.

    export OMP_NUM_THREADS=1
    python benchmarks/population_merge.py --size 125m --experts 4 --operator task_arithmetic

Every candidate has resident tensors of its own, as a population evaluated side by side has. Both
ways are timed in turn; figures are medians, in CPU seconds of all threads with one thread, else in
seconds on the clock. The candidates' bits are the same both ways, which is checked. Bytes: a
population reads K sources once and writes P models, P passes read them P times.

The last line of stdout is one JSON object whose figures are maps by P.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.merge_cases import CASES, MergeCase
from benchmarks.merge_in_place import Timer, merge_in_place
from benchmarks.synthetic_models import SIZES, ModelSet, build_models
from evomerge.core.model_space import align
from evomerge.core.recipe import Recipe
from evomerge.merging.derived import derive_for
from evomerge.merging.operator import merge_operators
from evomerge.merging.population import merge_population
from evomerge.runtime.worker import MergeInputs
from evomerge.storage.derived_cache import DerivedCache
from evomerge.storage.model_folder import ModelFolder

Resident = dict[str, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), default="125m")
    parser.add_argument("--experts", type=int, default=4, help="at least 2")
    parser.add_argument("--operator", choices=list(CASES), default="task_arithmetic")
    parser.add_argument("--populations", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where models are kept; else made anew")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as made:
        models = build_models(args.dir or Path(made), args.size, args.experts)
        case = CASES[args.operator]
        timer = Timer(args.threads)
        inputs = open_inputs(models, case, DerivedCache(Path(made) / "cache"))
        for size in args.populations:
            time_population(timer, inputs, case, models, size, args.repetitions)
            print(f"P = {size} done", file=sys.stderr, flush=True)
    facts = {"size": args.size, "experts": args.experts, "operator": args.operator}
    body = {**facts, "threads": args.threads, "clock": timer.clock}
    print(json.dumps({**body, **figures(timer, case, models, args.populations)}))


def open_inputs(models: ModelSet, case: MergeCase, cache: DerivedCache) -> MergeInputs:
    """Open and align the models, and derive what the method needs."""
    sources = {folder.name: ModelFolder(folder.name, folder) for folder in models.folders}
    space = align([source.header() for source in sources.values()], has_base=True)
    derived = derive_for(merge_operators.get(case.operator), space, sources, cache)
    return MergeInputs(space, sources, derived)


def time_population(
    timer: Timer,
    inputs: MergeInputs,
    case: MergeCase,
    models: ModelSet,
    size: int,
    repetitions: int,
) -> None:
    """Time P candidates both ways, and check that they are the same."""
    recipes = [case.recipe(len(models.experts), candidate) for candidate in range(size)]
    together = [_empty(inputs) for _ in recipes]
    apart = [_empty(inputs) for _ in recipes]
    merge_together(recipes, inputs, together)  # compiles, and touches every page
    merge_apart(recipes, inputs, apart)
    for one, other in zip(together, apart, strict=True):
        for name, tensor in one.items():
            if not torch.equal(tensor, other[name]):
                raise SystemExit(f"{case.name}, P = {size}: {name} differs between the two ways")
    for _ in range(repetitions):
        timer.run(f"together {size}", partial(merge_together, recipes, inputs, together))
        timer.run(f"apart {size}", partial(merge_apart, recipes, inputs, apart))


def merge_together(
    recipes: Sequence[Recipe], inputs: MergeInputs, residents: Sequence[Resident]
) -> None:
    """Merge all candidates, reading the sources once."""
    stream = merge_population(recipes, inputs.space, inputs.sources, inputs.derived, into=residents)
    for name, merged in stream:
        for resident, tensor in zip(residents, merged, strict=True):
            if resident[name].data_ptr() != tensor.data_ptr():
                resident[name].copy_(tensor)


def merge_apart(
    recipes: Sequence[Recipe], inputs: MergeInputs, residents: Sequence[Resident]
) -> None:
    """Merge one candidate after the other."""
    for recipe, resident in zip(recipes, residents, strict=True):
        merge_in_place(recipe, inputs, resident)


def figures(
    timer: Timer, case: MergeCase, models: ModelSet, populations: Sequence[int]
) -> dict[str, Any]:
    """Return maps by P."""
    n_sources = len(case.sources(len(models.experts)))
    n_bytes = 2 * models.n_elements
    found: dict[str, Any] = {}
    for size in populations:
        together, apart = timer.seconds(f"together {size}"), timer.seconds(f"apart {size}")
        values = {
            "ms_per_candidate": 1e3 * together / size,
            "ms_per_candidate_apart": 1e3 * apart / size,
            "speed_up": apart / together,
            "gb_per_s": n_bytes * (n_sources + size) / together / 1e9,
            "gb_per_s_apart": n_bytes * (n_sources + 1) * size / apart / 1e9,
        }
        for key, value in values.items():
            found.setdefault(key, {})[str(size)] = round(value, 4)
    return found


def _empty(inputs: MergeInputs) -> Resident:
    donor = inputs.sources[inputs.space.sources[0]]
    names = [tensor.spec.name for tensor in inputs.space.tensors]
    return {name: torch.empty_like(donor.read(name)) for name in names}


if __name__ == "__main__":
    main()
