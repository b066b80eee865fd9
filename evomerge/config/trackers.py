"""The `trackers:` section of a config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import evomerge.trackers  # noqa: F401 (registers them)
from evomerge.config.construct import construct
from evomerge.trackers.tracker import Tracker, trackers


def build_tracker(body: Mapping[str, Any], where: str, base_dir: Path) -> tuple[Tracker, Any]:
    """Return the tracker of a config's mapping, checked, and the mapping with all defaults.

    Raises:
        ConfigError: Unknown name or key, a wrong value, or a package that is not installed.
    """
    made, resolved = construct(trackers, body, where, base_dir)
    tracker: Tracker = made
    tracker.check()
    return tracker, resolved
