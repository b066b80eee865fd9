"""`evomerge validate`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from evomerge.cli.output import notice, say
from evomerge.config.export_run import Exporter
from evomerge.config.finalists import choosable, finalists
from evomerge.config.locate import locate
from evomerge.errors import ConfigError, RunError


def validate_command(run: Path, *, as_json: bool) -> None:
    """Score a run's finalists on its validation examples and print what they say.

    Raises:
        ConfigError: The run's tasks have no validation examples.
        RunError: Nothing has been scored yet.
    """
    exporter = Exporter(locate(run))
    look, results = exporter.validation, exporter.results
    if look is None:
        raise ConfigError(
            f"{run}: its tasks have no validation examples; a search whose tasks have, for "
            "instance, `splits: {search: 0.6, validation: 0.2, test: 0.2}` can be validated"
        )
    ids = finalists(results)
    if not ids:
        raise RunError(f"{results.folder.path}: no candidate has been scored yet")
    look.score(ids, partial(say_finalist, as_json))
    front = {int(i) for i in look.front(choosable(results)).candidate_ids}
    figures = look.figures()
    rows = [_row(candidate, results.objectives_of(candidate), figures, front) for candidate in ids]
    if as_json:
        print(json.dumps({"n": figures["n"], "finalists": rows}))
        return
    for name, n in figures["n"].items():
        _print_objective(name, n, rows)
    print("on the front of the validation scores: " + ", ".join(map(str, sorted(front))))


def _row(
    candidate: int, search: dict[str, float], figures: dict[str, Any], front: set[int]
) -> dict[str, Any]:
    key = str(candidate)
    return {
        "candidate": candidate,
        "on_front": candidate in front,
        "search": search,
        "validation": figures["candidates"][key],
        "interval": figures["intervals"][key],
        "shrunken": figures["shrunken"][key],
        "gain": figures["gains"][key],
    }


def _print_objective(name: str, n: int, rows: list[dict[str, Any]]) -> None:
    print(f"{name} on {n} validation examples")
    print(
        "candidate    search  validation         95 % interval  shrunken  "
        f"{'over best parent, paired':>28}       p"
    )
    for row in rows:
        low, high = row["interval"][name]
        gain = row["gain"].get(name)
        over = "" if gain is None else f"{_gain(gain):>28}  {gain['p']:6.3f}"
        print(
            f"{row['candidate']:>9}  {row['search'][name]:8.4f}  {row['validation'][name]:10.4f}  "
            f"{f'[{low:.4f}, {high:.4f}]':>20}  {row['shrunken'][name]:8.4f}  {over}".rstrip()
        )
    gaps = [row["search"][name] - row["validation"][name] for row in rows]
    print(f"search minus validation: {sum(gaps) / len(gaps):+.4f} on average\n")


def _gain(gain: dict[str, Any]) -> str:
    low, high = gain["interval"]
    return f"{gain['gain']:+.4f} [{low:+.4f}, {high:+.4f}]"


def say_finalist(as_json: bool, done: int, total: int, candidate: int) -> None:
    """Say that a finalist was scored."""
    notice(
        f"validated {done} of {total}: candidate {candidate}",
        {"validated": candidate, "done": done, "total": total},
        as_json=as_json,
    )


def say_validating(as_json: bool, done: int, total: int, candidate: int) -> None:
    """Say once that finalists are being scored, where that is not what was asked for."""
    if as_json:
        say_finalist(as_json, done, total, candidate)
    elif done == 1:
        say(f"scoring {total} finalists on the validation examples, once for this run")
