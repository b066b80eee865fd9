"""Timing merges into the parameters of a resident model, beside the machine's ceiling."""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.ceiling import WeightedSum, copy_first, variants
from benchmarks.merge_cases import MergeCase
from benchmarks.synthetic_models import ModelSet
from evomerge.core.model_space import align
from evomerge.core.recipe import Recipe
from evomerge.evaluation.subject import Subject
from evomerge.merging.derived import Derived, derive_for
from evomerge.merging.materialize import materialize
from evomerge.merging.operator import merge_operators
from evomerge.runtime.worker import MergeInputs, Worker
from evomerge.storage.derived_cache import DerivedCache
from evomerge.storage.model_folder import ModelFolder

Figures = dict[str, Any]


@dataclass
class Timer:
    """Seconds of repeated calls, by label, of this process's threads and on the clock."""

    threads: int
    cpu: dict[str, list[float]] = field(default_factory=dict)
    wall: dict[str, list[float]] = field(default_factory=dict)

    @property
    def clock(self) -> str:
        """Which clock `seconds` reads: with several threads, CPU seconds hide their gain."""
        return "cpu" if self.threads == 1 else "wall"

    def run(self, label: str, call: Callable[[], object]) -> None:
        """Time one call."""
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        self.cpu.setdefault(label, []).append(time.process_time() - cpu)
        self.wall.setdefault(label, []).append(time.perf_counter() - wall)

    def seconds(self, label: str) -> float:
        """Return the median by the clock that the ratios use."""
        return statistics.median((self.cpu if self.clock == "cpu" else self.wall)[label])


@dataclass(frozen=True, eq=False)
class Bench:
    """Open models and the resident one.

    Attributes:
        models: The folders.
        inputs: Space and sources; nothing derived.
        subject: The resident model.
        timer: Where times go.
    """

    models: ModelSet
    inputs: MergeInputs
    subject: Subject
    timer: Timer

    @property
    def n_experts(self) -> int:
        """E."""
        return len(self.models.experts)

    def time_ceiling(self, sources: tuple[str, ...]) -> None:
        """Time every variant of a weighted sum of these sources once."""
        names = [tensor.spec.name for tensor in self.inputs.space.tensors]
        opened = [self.inputs.sources[source] for source in sources]
        arrays = {name: [source.read(name).reshape(-1) for source in opened] for name in names}
        resident = self.subject.model.state_dict()
        coefficients = [1.0 / len(sources)] * len(sources)
        ways = variants(len(sources), self.timer.threads) | {"copy": copy_first}
        for way, weighted_sum in ways.items():
            small = arrays[min(names, key=lambda name: arrays[name][0].numel())]
            weighted_sum(small, coefficients, torch.empty_like(small[0]))  # compiles

            def whole(weighted_sum: WeightedSum = weighted_sum) -> None:
                for name in names:
                    weighted_sum(arrays[name], coefficients, resident[name].view(-1))

            self.timer.run(f"ceiling {len(sources)} {way}", whole)

    def ceiling(self, n_sources: int) -> tuple[str, float]:
        """Return the fastest weighted sum of K arrays and its seconds."""
        prefix = f"ceiling {n_sources} "
        found = {
            label.removeprefix(prefix): self.timer.seconds(label)
            for label in self.timer.cpu
            if label.startswith(prefix) and not label.endswith(" copy")
        }
        best = min(found, key=lambda way: found[way])
        return best, found[best]


def merge_in_place(recipe: Recipe, inputs: MergeInputs, resident: Mapping[str, Tensor]) -> None:
    """Merge one candidate into the resident model's parameters."""
    stream = materialize(recipe, inputs.space, inputs.sources, inputs.derived, into=resident)
    for name, tensor in stream:
        if tensor.data_ptr() != resident[name].data_ptr():
            resident[name].copy_(tensor)  # copied from a source, or of a method that allocates


def time_in_place(
    bench: Bench, cases: Sequence[MergeCase], repetitions: int, cache: DerivedCache
) -> Figures:
    """Return the figures of merges into the resident model.

    Args:
        bench: The models.
        cases: What is timed.
        repetitions: How many candidates of each.
        cache: Where statistics are kept; what it has already is not timed.
    """
    prepared = {case.name: _prepare(bench, case, cache) for case in cases}
    resident = bench.subject.model.state_dict()
    source_sets = sorted({case.sources(bench.n_experts) for case in cases})
    for repetition in range(1, repetitions + 1):
        for used in source_sets:
            bench.time_ceiling(used)
        # Shuffled: what comes first, or after a long one, finds the caches in another state.
        for case in random.Random(repetition).sample(list(cases), len(cases)):
            inputs = prepared[case.name]
            worker = Worker(inputs, [bench.subject], {}, device="cpu")
            recipe = case.recipe(bench.n_experts, repetition)
            merge = partial(merge_in_place, recipe, inputs, resident)
            bench.timer.run(case.name, merge)
            bench.timer.run(f"install {case.name}", partial(worker.install, recipe))
        print(f"repetition {repetition} of {repetitions}", file=sys.stderr, flush=True)
    return _in_place_figures(bench, cases)


def _prepare(bench: Bench, case: MergeCase, cache: DerivedCache) -> MergeInputs:
    """Return what the case's merges read; the statistics and the first merge are timed apart."""
    found: list[Derived] = []
    space, sources = bench.inputs.space, bench.inputs.sources
    operator = merge_operators.get(case.operator)
    bench.timer.run(
        f"prepare {case.name}",
        lambda: found.append(derive_for(operator, space, sources, cache)),
    )
    inputs = MergeInputs(space, sources, found[0])
    resident = bench.subject.model.state_dict()
    first = partial(merge_in_place, case.recipe(bench.n_experts), inputs, resident)
    bench.timer.run(f"first {case.name}", first)  # compiles
    seconds = bench.timer.seconds(f"prepare {case.name}")
    print(f"prepared {case.name}: {seconds:.2f} s", file=sys.stderr, flush=True)
    return inputs


def _in_place_figures(bench: Bench, cases: Sequence[MergeCase]) -> Figures:
    timer, n_bytes = bench.timer, 2 * bench.models.n_elements
    figures: Figures = {"ceiling_gb_per_s": {}}
    for label in timer.cpu:
        if label.startswith("ceiling "):
            _, n_sources, way = label.split(" ", 2)
            moved = n_bytes * (2 if way == "copy" else int(n_sources) + 1)
            rate = moved / timer.seconds(label) / 1e9
            figures["ceiling_gb_per_s"][f"{n_sources} sources, {way}"] = round(rate, 2)
    for case in cases:
        n_sources = len(case.sources(bench.n_experts))
        seconds, moved = timer.seconds(case.name), n_bytes * (n_sources + 1)
        values = {
            "ms": 1e3 * seconds,
            "cpu_ms": 1e3 * statistics.median(timer.cpu[case.name]),
            "wall_ms": 1e3 * statistics.median(timer.wall[case.name]),
            "bytes_moved": moved,
            "gb_per_s": moved / seconds / 1e9,
            "ratio_to_ceiling": bench.ceiling(n_sources)[1] / seconds,
            "install_ms": 1e3 * timer.seconds(f"install {case.name}"),
            "prepare_seconds": timer.seconds(f"prepare {case.name}"),
            "first_ms": 1e3 * timer.seconds(f"first {case.name}"),
        }
        for key, value in values.items():
            figures.setdefault(key, {})[case.name] = round(value, 4)
    return figures


def open_bench(models: ModelSet, threads: int) -> Bench:
    """Open the models and load the base as the resident one."""
    sources = {folder.name: ModelFolder(folder.name, folder) for folder in models.folders}
    space = align([source.header() for source in sources.values()], has_base=True)
    subject = Subject.load(models.base, auto_class="AutoModelForCausalLM")
    inputs = MergeInputs(space, sources, Derived({}, None))
    return Bench(models, inputs, subject, Timer(threads))
