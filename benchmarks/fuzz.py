"""Fuzz every reader of files that strangers write: does anything but an error of ours come out?

    export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
    python benchmarks/fuzz.py --executions 1000000 [--engine auto|atheris|mutation] [--seed 0]
                              [--target NAME …] [--jobs 2] [--found DIR] [--smoke]

Every target (`fuzz_targets.py`) runs in a process of its own, from valid inputs that are changed
again and again (`fuzz_mutation.py`). With `atheris` installed (`pip install 'evomerge[fuzz]'`)
libFuzzer keeps what reaches new branches of evomerge, yaml and json and goes on from there; without
it, what gives a new kind of answer is kept. A crash is any exception that is not of
`evomerge.errors`, more than `CPU_SECONDS` of CPU for one input of at most 8 kB, or memory beyond
`MEMORY_BYTES` more than the process began with. Crashes are told apart by exception and the
innermost line of evomerge; `--found` keeps one input of each.

Last line: JSON with `executions`, `crashes` (different ones), `engine`, `seconds`, `cpu_seconds`
and `per_target`: executions, crashes, `accepted` (inputs that were read without error), `answers`
(different kinds of refusal), `max_ms` CPU of one input, `grown_mb` of resident memory.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

# Run as a script too, where only this folder is on the path.
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from benchmarks.fuzz_targets import Target

CPU_SECONDS = 2.0
MEMORY_BYTES = 1 << 30
SMOKE = 1100
INSTRUMENTED = ["evomerge", "yaml", "json"]


class TooSlow(BaseException):
    """One input took more than `CPU_SECONDS`; no reader catches it."""


@dataclass
class Campaign:
    """The executions of one target."""

    target: Target
    read: Any
    executions: int
    found: Path
    done: int = 0
    accepted: int = 0
    max_seconds: float = 0.0
    answers: set[str] = field(default_factory=set)
    crashes: dict[str, str] = field(default_factory=dict)

    def execute(self, data: bytes) -> bool:
        """Read one input; returns whether it gave an answer that none before it had."""
        from evomerge.errors import EvomergeError

        known = len(self.answers)
        self.done += 1
        begun = time.process_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
        try:
            self.read(data)
            self.accepted += 1
        except EvomergeError as error:
            self.answers.add(type(error).__name__ + re.sub(r"[^a-z ]+|'.*?'", "", str(error))[:80])
        except (Exception, TooSlow) as error:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            self._crashed(error, data)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        self.max_seconds = max(self.max_seconds, time.process_time() - begun)
        return len(self.answers) > known

    def _crashed(self, error: BaseException, data: bytes) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/evomerge/" in frame.filename] or frames
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
        kind = f"{type(error).__name__} at {where}"
        if kind not in self.crashes:
            self.crashes[kind] = str(error)[:200]
            name = hashlib.blake2b(kind.encode(), digest_size=4).hexdigest()
            (self.found / name).write_bytes(data)
            text = "".join(traceback.format_exception(error)[-8:])
            (self.found / f"{name}.txt").write_text(text, errors="replace")


def fuzz_by_mutation(campaign: Campaign, rng: random.Random) -> None:
    """Change inputs; keep those that gave a new kind of answer."""
    seeds = list(campaign.target.seeds())
    for seed in seeds:
        campaign.execute(seed)
    corpus = list(seeds)
    while campaign.done < campaign.executions:
        old = rng.choice(seeds if rng.random() < 0.5 else corpus)
        data = campaign.target.mutate(old, rng)
        if campaign.execute(data):
            corpus.append(data)


def fuzz_by_coverage(campaign: Campaign, seed: int, report: Path) -> NoReturn:
    """Let libFuzzer choose by the branches that inputs reach; ends the process."""
    import atheris

    corpus = Path(tempfile.mkdtemp(dir=campaign.found))
    for number, data in enumerate(campaign.target.seeds()):
        (corpus / str(number)).write_bytes(data)

    def mutate(data: bytes, max_size: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.2:
            return bytes(atheris.Mutate(data, max_size))
        return campaign.target.mutate(data, rng)[:max_size]

    def execute(data: bytes) -> None:
        campaign.execute(data)
        if campaign.done >= campaign.executions:  # libFuzzer ends the process without a word
            write_report(campaign, report)
            os._exit(0)

    options = [f"-seed={seed + 1}", "-max_len=8192", "-rss_limit_mb=0", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], execute, custom_mutator=mutate)
    atheris.Fuzz()
    raise AssertionError("libFuzzer returned")


def write_report(campaign: Campaign, report: Path) -> None:
    """Write the figures of one target."""
    body = {
        "executions": campaign.done,
        "crashes": campaign.crashes,
        "accepted": campaign.accepted,
        "answers": len(campaign.answers),
        "max_ms": round(1000 * campaign.max_seconds, 1),
        "rss_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    report.write_text(json.dumps(body))


def run_target(name: str, executions: int, seed: int, engine: str, found: Path) -> None:
    """Fuzz one target in this process and leave its figures in ``found/report.json``."""
    if engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=INSTRUMENTED, enable_loader_override=False):
            from benchmarks.fuzz_targets import TARGETS
    else:
        from benchmarks.fuzz_targets import TARGETS

    def too_slow(_number: int, _frame: FrameType | None) -> None:
        raise TooSlow(f"more than {CPU_SECONDS:g} s of CPU for one input")

    place = found / "place"
    place.mkdir()
    target = TARGETS[name]
    campaign = Campaign(target, target.make(place), executions, found)
    signal.signal(signal.SIGVTALRM, too_slow)
    campaign.execute(target.seeds()[0])  # imports what is imported late
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, size + MEMORY_BYTES))
    (found / "begin_kb").write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
    if engine == "atheris":
        fuzz_by_coverage(campaign, seed, found / "report.json")
    fuzz_by_mutation(campaign, random.Random(seed))
    write_report(campaign, found / "report.json")


def run_child(name: str, executions: int, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Fuzz one target in a process of its own; returns its figures."""
    found = folder / name
    found.mkdir(parents=True)
    command = [sys.executable, str(Path(__file__).resolve()), "--child", name]
    command += ["--executions", str(executions), "--seed", str(args.seed)]
    command += ["--engine", args.engine, "--found", str(found)]
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    report = found / "report.json"
    if not report.exists():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        text = f"ended with code {done.returncode}: {last}"
        return {"executions": 0, "crashes": {"process": text}, "seconds": 0.0}
    figures: dict[str, Any] = json.loads(report.read_text())
    begin_kb = int((found / "begin_kb").read_text())
    figures["grown_mb"] = round((figures.pop("rss_kb") - begin_kb) / 1024, 1)
    figures["seconds"] = round(time.monotonic() - begun, 1)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--executions", type=int, default=1_000_000)
    parser.add_argument("--engine", choices=("auto", "atheris", "mutation"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", help="only this one; may be repeated")
    parser.add_argument("--found", type=Path, help="folder for inputs that crash")
    parser.add_argument("--jobs", type=int, default=2, help="targets at a time")
    parser.add_argument("--smoke", action="store_true", help=f"{SMOKE} executions")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        run_target(args.child, args.executions, args.seed, args.engine, args.found)
        return
    if args.engine == "auto":
        args.engine = "atheris" if importlib.util.find_spec("atheris") else "mutation"
    from benchmarks.fuzz_targets import TARGETS

    chosen = args.target or list(TARGETS)
    if unknown := set(chosen) - set(TARGETS):
        parser.error(f"no target {sorted(unknown)[0]}; there are {', '.join(TARGETS)}")
    wanted = SMOKE if args.smoke else args.executions
    total = sum(TARGETS[name].share for name in chosen)
    begun = time.monotonic()
    per_target: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="evomerge-fuzz-", dir=_memory()) as scratch:
        folder = args.found or Path(scratch)

        def run(name: str) -> dict[str, Any]:
            executions = -int(-wanted * TARGETS[name].share // total)
            figures = run_child(name, executions, args, folder)
            print(f"{name:<14}{figures}", flush=True)
            return figures

        with ThreadPoolExecutor(args.jobs) as pool:  # the long ones first
            order = sorted(chosen, key=lambda name: -TARGETS[name].share)
            for name, figures in zip(order, pool.map(run, order), strict=True):
                per_target[name] = figures | {"crashes": len(figures["crashes"])}
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    body = {
        "executions": sum(figures["executions"] for figures in per_target.values()),
        "crashes": sum(figures["crashes"] for figures in per_target.values()),
        "engine": args.engine,
        "seconds": round(time.monotonic() - begun, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "per_target": per_target,
    }
    print(json.dumps(body))
    sys.exit(1 if body["crashes"] else 0)


def _memory() -> str | None:
    """Return a folder in memory, where there is one: every input is written to a file."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


if __name__ == "__main__":
    main()
