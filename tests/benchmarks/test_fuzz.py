"""A short campaign over every reader of strangers' files, and what the fuzzer itself promises."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from benchmarks.fuzz import SMOKE, Campaign, fuzz_by_mutation
from benchmarks.fuzz_mutation import mutated_bytes, mutated_json, mutated_safetensors
from benchmarks.fuzz_targets import TARGETS
from evomerge.errors import ConfigError, EvomergeError

TOTAL = sum(target.share for target in TARGETS.values())


def campaign(name: str, executions: int, folder: Path) -> Campaign:
    place = folder / "place"
    place.mkdir()
    target = TARGETS[name]
    return Campaign(target, target.make(place), executions, folder)


@pytest.mark.parametrize("name", list(TARGETS))
def test_nothing_but_errors_of_ours_comes_out(name: str, tmp_path: Path) -> None:
    executions = max(60, int(3 * SMOKE * TARGETS[name].share / TOTAL))
    short = campaign(name, executions, tmp_path)
    fuzz_by_mutation(short, random.Random(2026))
    assert short.crashes == {}
    assert short.done == executions
    assert short.answers


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "merge_json"])
def test_a_target_begins_from_inputs_that_are_accepted(name: str, tmp_path: Path) -> None:
    begun = campaign(name, 0, tmp_path)
    for seed in TARGETS[name].seeds():
        begun.execute(seed)
    assert begun.accepted >= 1
    assert begun.crashes == {}


def test_a_crash_is_counted_once_and_its_input_kept(tmp_path: Path) -> None:
    def read(data: bytes) -> None:
        if data == b"bad":
            raise KeyError("a bug")
        if data == b"refused":
            raise ConfigError("no")

    found = Campaign(TARGETS["recipe"], read, 4, tmp_path)
    for data in (b"good", b"bad", b"bad", b"refused"):
        found.execute(data)
    assert (found.done, found.accepted, len(found.answers), len(found.crashes)) == (4, 1, 1, 1)
    (kept,) = (path for path in tmp_path.iterdir() if not path.suffix)
    assert kept.read_bytes() == b"bad"


def test_changes_repeat_and_reach_behind_the_first_parser() -> None:
    for mutate, seed in (
        (mutated_bytes, b"abc"),
        (mutated_json, b'{"a": [1, "x"]}'),
        (mutated_safetensors, TARGETS["safetensors"].seeds()[0]),
    ):
        one, two = ([mutate(seed, random.Random(n)) for n in range(50)] for _ in range(2))
        assert one == two
        assert len(set(one)) > 25


# What campaigns have found, fixed: a reader had raised something else, or filled the memory.
REGRESSIONS = [
    ("run_results", {"kind": "header", "format": 1, "founders": 10**12, "tasks": {"low": 1}}),
    ("run_results", {"kind": "header", "format": 1, "tasks": ["low"]}),
    ("run_results", {"kind": "header", "format": 1, "tasks": {"low": {}}}),
    ("run_results", {"kind": "told", "id": 7, "row": 0, "scores": "", "weights": "", "objectives": [0.1, 0.2]}),
    ("run_results", {"kind": "told", "id": [0]}),
    ("run_results", {"kind": "asked", "id": 0}),
    ("run_results", {"id": 0}),
    ("run_results", []),
    ("journal", ["header"]),
    ("salvage", {"kind": "header", "format": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "event"), REGRESSIONS)
def test_found_once_refused_since(name: str, event: object, tmp_path: Path) -> None:
    from benchmarks.fuzz_mutation import chained

    header = {"kind": "header", "format": 1, "tasks": {"low": 2, "high": 2}, "founders": 2}
    is_header = isinstance(event, dict) and event.get("kind") == "header"
    place = tmp_path / "place"
    place.mkdir()
    read = TARGETS[name].make(place)
    asked = TARGETS["journal"].seeds()[1].splitlines()[1]
    assert asked
    begun = time.process_time()
    events = [event] if is_header or name == "journal" else [header, event]
    if is_header and name == "run_results":
        events.append({"kind": "asked", "id": 0, "digest": "", "origin": "", "parents": []})
    with pytest.raises(EvomergeError):
        read(chained(events))
    assert time.process_time() - begun < 5
