"""`evomerge track` and `evomerge optuna`: a run's results somewhere else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.config.locate import locate
from evomerge.config.schema import apply_override
from evomerge.config.track_run import track
from evomerge.config.trackers import build_tracker
from evomerge.config.workers import read_run_config
from evomerge.errors import ConfigError
from evomerge.storage.run_store import RunFolder
from evomerge.trackers.optuna_tracker import OptunaTracker


def track_command(run: Path, to: str | None, settings: Sequence[str], *, as_json: bool) -> None:
    """Send a run to a tracker, or to those of its config.

    Raises:
        ConfigError: The tracker or a setting is unknown, or there is none to send to.
        RunError: The tracker cannot be used, or holds another run.
    """
    folder = locate(run)
    bodies: list[dict[str, Any]] = list(read_run_config(folder).trackers)
    if to is not None:
        body: dict[str, Any] = {"name": to}
        for setting in settings:
            if not setting.partition("=")[1]:
                raise ConfigError(f"--set {setting}: expected KEY=VALUE")
            apply_override(body, setting)
        bodies = [body]
    elif settings:
        raise ConfigError("--set is a setting of one tracker; name it with --to")
    if not bodies:
        raise ConfigError(f"{folder.where}: its config has no `trackers:`; name one with --to")
    rows = []
    for body in bodies:
        tracker, _ = build_tracker(body, f"tracker {body['name']!r}", Path.cwd())
        sent, has = track(folder, tracker, is_running=folder.is_driven())
        rows.append(_row(folder, body["name"], sent, has, tracker.where()))
    _show(rows, as_json=as_json)


def optuna_command(run: Path, storage: str | None, study: str | None, *, as_json: bool) -> None:
    """Write a run as an Optuna study.

    Raises:
        RunError: The storage cannot be used, or the study is of another run.
    """
    folder = locate(run)
    tracker = OptunaTracker(storage, study)
    sent, has = track(folder, tracker, is_running=folder.is_driven())
    _show([_row(folder, "optuna", sent, has, tracker.where())], as_json=as_json)


def _row(folder: RunFolder, name: str, sent: int, has: int, where: str) -> dict[str, Any]:
    return {"run": folder.where, "tracker": name, "sent": sent, "has": has, "where": where}


def _show(rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['tracker']}: {row['sent']} results sent, {row['has']} in all; {row['where']}")
