"""kill -9 at random moments, many times: is a result lost, counted twice, or anything changed?

    export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
    python benchmarks/kill_campaign.py --kills 1000 [--ray-kills 20] [--seed 0] [--smoke]

Each round is a search by the real command line: tiny vision models merged and scored in process,
M2N2, two tasks, `--evaluations` results. It is killed again and again until it ends: half the
kills fall a random time after the start (start-up and replay included), half after a random
number of bytes more of journal. Every kill is followed by `evomerge search CONFIG --run RUN`, as a
supervisor would; rounds follow until the kills are spent. In every second round candidates are
scored out of order, so that results are parked in ``arrived/``. After each kill the run folder is
read, and at the end compared byte for byte (journal, scores, front) with the same search left
alone.

So that a kill takes a second rather than ten, drivers are forks of a process that has imported
torch already (`forked_cli.py`), and the models are tiny; everything else is what
`python -m evomerge` runs.

`--ray-kills` adds rounds with two Ray actors, in which the driver, an actor, the raylet or the
control store (gcs_server) is killed. Where one of the last two dies while the driver connects,
Ray's own code ends the driver with exit code 1; the same command follows, as after a kill.

Last line: JSON with `kills`; `lost`, results in the journal or parked at a kill that were missing
or scored again later; `duplicated`, results told twice; `identical`, whether all rounds ended byte
for byte like their undisturbed twins; `repeated`, evaluations under way at a kill and done again
(at most one per kill and worker); `max_cut_bytes`, the longest torn line that was cut off.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Run as a script too, where only this folder is on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil
import yaml

from benchmarks import forked_cli
from benchmarks.forked_cli import Fork
from evomerge.storage.journal import read_journal

COMPARED = ("journal.jsonl", "scores.f32", "front.json")
VICTIMS = ("driver", "actor", "raylet", "gcs")
RAY_ENDED_IT = ("Failed to register worker", "The program will terminate")
INTERRUPTED_OR_BROKEN = (3, 75)  # exit codes that ask for a resume

SCORER = '''
"""Scores from weights alone; `counted` leaves a byte per evaluation it has finished."""
import os
import numpy as np

def closeness(subject, n, target):
    weights = np.concatenate([p.detach().numpy().ravel() for p in subject.model.parameters()])
    cut = np.array_split(weights, n)
    return [float(np.clip(1 - abs(part.mean() * 20 - target), 0, 1)) for part in cut]

def counted(subject, n, target):
    scores = closeness(subject, n, target)
    handle = os.open(os.environ["CAMPAIGN_COUNT"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, b".")
    os.close(handle)
    return scores
'''


@dataclass
class Tally:
    """What the campaign has seen so far; see the module's last paragraph."""

    kills: int = 0
    lost: int = 0
    duplicated: int = 0
    repeated: int = 0
    max_cut_bytes: int = 0
    rounds: int = 0
    differing: list[str] = field(default_factory=list)
    victims: dict[str, int] = field(default_factory=dict)
    parked: int = 0


@dataclass(frozen=True)
class Snapshot:
    """What a run folder holds after a kill.

    Attributes:
        told: Ids of results in the journal, in order.
        parked: Ids of results in ``arrived/``.
        finished: Evaluations that the scorer has finished so far.
        torn: Bytes after the last whole journal line.
    """

    told: tuple[int, ...] = ()
    parked: frozenset[int] = frozenset()
    finished: int = 0
    torn: int = 0

    @property
    def recorded(self) -> int:
        """How many results are safe."""
        return len(self.told) + len(self.parked - set(self.told))

    def lost_in(self, later: Snapshot) -> int:
        """Return how many of these results are missing later."""
        kept = set(later.told) | later.parked
        missing = sum(number not in kept for number in {*self.told, *self.parked})
        return missing + (later.told[: len(self.told)] != self.told and not missing)


def look(run: Path, finished: Path) -> Snapshot:
    """Read a run folder that nobody writes."""
    done = finished.stat().st_size if finished.exists() else 0
    journal = run / "journal.jsonl"
    if not journal.exists():
        return Snapshot(finished=done)
    events, _, valid = read_journal(journal)
    told = tuple(event["id"] for event in events if event["kind"] == "told")
    parked = frozenset(int(path.stem) for path in (run / "arrived").glob("*.json"))
    return Snapshot(told, parked, done, journal.stat().st_size - valid)


def build_models(folder: Path) -> None:
    """Make a tiny base and two experts, and the scorer's module."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    shape = ViTConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=4,
        patch_size=2,
        num_channels=1,
        num_labels=3,
    )
    (folder / "campaign_scorer.py").write_text(SCORER)
    for seed, name, shift in ((0, "base", 0.0), (1, "x", 0.02), (2, "y", -0.02)):
        torch.manual_seed(seed)
        model = ViTForImageClassification(shape)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(shift + 0.02 * torch.randn_like(parameter))
        model.save_pretrained(folder / name)


class Round:
    """One search, its undisturbed twin, and the kills between its start and its end."""

    def __init__(self, folder: Path, models: Path, seed: int, evaluations: int, ray: bool) -> None:
        folder.mkdir()
        self.run, self.twin = folder / "run", folder / "twin"
        self.log, self.finished = folder / "log", folder / "finished"
        self._rng = random.Random(seed)
        self._ray = ("--executor", "ray", "--workers", "2") if ray else ()
        self._slots = 2 if ray else 1
        self._is_shuffled = not ray and bool(seed % 2)
        self._config = folder / "config.yaml"
        self._config.write_text(yaml.safe_dump(_config(models, seed, evaluations)))
        self._evaluations = evaluations
        if self._start(self.twin, folder / "twin-count", ()).wait() != 0:
            raise RuntimeError(f"the undisturbed search failed:\n{self._tail()}")

    def _start(
        self, run: Path, count: Path, more: tuple[str, ...], shuffle: int | None = None
    ) -> Fork:
        arguments = ["search", str(self._config), "--run", str(run), *more]
        os.environ["CAMPAIGN_COUNT"] = str(count)  # not in the config: journals must be equal
        return forked_cli.start(arguments, self.log, shuffle=shuffle)

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""

    def play(self, tally: Tally, kills: int) -> None:
        """Kill at most `kills` times, then let the search end and compare it."""
        before = Snapshot()
        while True:
            shuffle = self._rng.randrange(2**31) if self._is_shuffled else None
            driver = self._start(self.run, self.finished, self._ray, shuffle)
            done = 0
            if tally.kills < kills:
                done = self._disturb(driver, tally)
            code = driver.wait()
            _end_all(driver, self._ray)
            if code not in (0, -9, *INTERRUPTED_OR_BROKEN) and not self._ended_by_ray(code):
                raise RuntimeError(f"a driver ended with {code}:\n{self._tail()}")
            after = look(self.run, self.finished)
            tally.lost += before.lost_in(after)
            tally.duplicated += len(after.told) - len(set(after.told))
            again = after.finished - before.finished - (after.recorded - before.recorded)
            tally.repeated += max(0, again)
            tally.lost += max(0, again - self._slots * max(1, done))
            tally.max_cut_bytes = max(tally.max_cut_bytes, after.torn)
            tally.parked += len(after.parked - before.parked)
            before = after
            if code == 0:
                break
        self._compare(tally)

    def _ended_by_ray(self, code: int) -> bool:
        """Return whether Ray's own code ended the driver, whose cluster died too early."""
        last = self._tail()[-600:]
        return code == 1 and bool(self._ray) and any(words in last for words in RAY_ENDED_IT)

    def _disturb(self, driver: Fork, tally: Tally) -> int:
        """Kill the driver, or a process it depends on, at a random moment; returns how often."""
        if self._rng.random() < 0.5:
            until = time.monotonic() + self._rng.uniform(0.0, 12.0 if self._ray else 1.0)
            while driver.poll() is None and time.monotonic() < until:
                time.sleep(0.001)
        else:
            wanted = self._bytes() + self._rng.randint(1, 30_000)
            while driver.poll() is None and self._bytes() < wanted:
                time.sleep(0.0005)
            time.sleep(self._rng.uniform(0.0, 0.01))
        if driver.poll() is not None:
            return 0
        victim = self._rng.choice(
            ("driver", "actor", "raylet", "gcs") if self._ray else ("driver",)
        )
        found = _processes(driver.pid, victim)
        if not found:  # not there yet
            victim, found = "driver", [driver.pid]
        process = self._rng.choice(found)
        tally.kills += 1
        tally.victims[victim] = tally.victims.get(victim, 0) + 1
        if victim == "driver":
            _end_all(driver, self._ray)
        else:
            psutil.Process(process).kill()
        return 1

    def _bytes(self) -> int:
        try:
            return (self.run / "journal.jsonl").stat().st_size
        except FileNotFoundError:
            return 0

    def _compare(self, tally: Tally) -> None:
        tally.rounds += 1
        for name in COMPARED:
            if (self.run / name).read_bytes() != (self.twin / name).read_bytes():
                tally.differing.append(str(self.run / name))
        told = look(self.run, self.finished).told
        tally.lost += self._evaluations - len(set(told))


def _config(models: Path, seed: int, evaluations: int) -> dict[str, Any]:
    def task(name: str, target: float, function: str) -> dict[str, Any]:
        return {
            "name": name,
            "evaluator": {
                "name": "python",
                "function": f"campaign_scorer:{function}",
                "path": str(models),
                "n": 12,
                "arguments": {"n": 12, "target": target},
                "auto_class": "AutoModelForImageClassification",
            },
        }

    return {
        "name": "campaign",
        "seed": seed,
        "base_model": str(models / "base"),
        "models": [{"name": name, "model": str(models / name)} for name in ("x", "y")],
        "merge": {"name": "linear", "normalize": False},
        "algorithm": {"name": "m2n2", "population_size": 6},
        "tasks": [task("up", 0.1, "closeness"), task("down", -0.1, "counted")],
        "budget": {"evaluations": evaluations},
        "search": {"look_ahead": 6},
        "runtime": {"workers": 1, "threads": 1},
    }


def _processes(pid: int, kind: str) -> list[int]:
    """Return living processes of a kind below a driver."""
    names = {"actor": "ray::PlacedActor", "raylet": "raylet/raylet", "gcs": "gcs_server"}
    if kind == "driver":
        return [pid]
    found = []
    for child in _below(pid):
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        if words and names[kind] in words[0]:
            found.append(child.pid)
    return found


def _below(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _end_all(driver: Fork, ray: tuple[str, ...]) -> None:
    """Kill a driver, if it still runs, and then what is left of its private cluster."""
    children = _below(driver.pid) if ray else []
    if driver.poll() is None:
        driver.kill()
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(children, timeout=30)


def campaign(
    folder: Path, models: Path, kills: int, *, evaluations: int, seed: int, ray: bool = False
) -> Tally:
    """Play rounds until the kills are spent."""
    tally, number, started = Tally(), seed, time.monotonic()
    while tally.kills < kills:
        name = f"{'ray' if ray else 'round'}-{number}"
        Round(folder / name, models, number, evaluations, ray).play(tally, kills)
        number += 1
        print(
            f"{name}: {tally.kills} kills in {time.monotonic() - started:.0f} s, "
            f"lost {tally.lost}, duplicated {tally.duplicated}, differing {len(tally.differing)}, "
            f"repeated {tally.repeated}, parked {tally.parked}",
            file=sys.stderr,
            flush=True,
        )
    return tally


def figures(tally: Tally) -> dict[str, Any]:
    """Return a campaign's part of the JSON object."""
    return {
        "kills": tally.kills,
        "lost": tally.lost,
        "duplicated": tally.duplicated,
        "identical": not tally.differing,
        "rounds": tally.rounds,
        "repeated": tally.repeated,
        "parked": tally.parked,
        "max_cut_bytes": tally.max_cut_bytes,
        "victims": tally.victims,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--ray-kills", type=int, default=0)
    parser.add_argument("--evaluations", type=int, default=400, help="of each round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if args.smoke:
        args.kills, args.evaluations = min(args.kills, 6), 60
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    forked_cli.preload()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        place, models = Path(folder), Path(folder) / "models"
        models.mkdir()
        built = forked_cli.fork(lambda: build_models(models), place / "log")
        if built.wait() != 0:
            raise RuntimeError((place / "log").read_text())
        sizes = {"evaluations": args.evaluations, "seed": args.seed}
        result = figures(campaign(place, models, args.kills, **sizes))
        if args.ray_kills:
            sizes["evaluations"] = min(args.evaluations, 200)
            result["ray"] = figures(campaign(place, models, args.ray_kills, **sizes, ray=True))
    print(json.dumps(result | {"seconds": round(time.monotonic() - started)}))


if __name__ == "__main__":
    main()
