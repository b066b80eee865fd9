"""`evomerge prepare`: compute once what every candidate of a search will want."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

from evomerge.cli.output import say
from evomerge.config.merge_choice import method_text
from evomerge.config.prepare import KindDone, plan_preparation
from evomerge.config.schema import load_config
from evomerge.errors import ConfigError

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def prepare_command(
    config_path: Path,
    *,
    overrides: list[str],
    budget: str | None,
    every_kind: bool,
    as_json: bool,
) -> None:
    """Fill the cache for a config; print a line per kind, or one JSON object."""
    budget_bytes = None if budget is None else parse_size(budget)
    config = load_config(config_path, overrides)
    preparation = plan_preparation(
        config,
        config_path.resolve().parent,
        budget_bytes=budget_bytes,
        every_kind=every_kind,
    )
    if not preparation.statistics and not as_json:
        say(f"{method_text(config.merge)}: nothing to prepare")
    kinds = []
    for kind in preparation.run():
        kinds.append(kind)
        if not as_json:
            print(line(kind), flush=True)
    if as_json:
        rows = [dataclasses.asdict(kind) for kind in kinds]
        print(json.dumps({"cache": str(preparation.cache.root), "kinds": rows}))
    elif kinds:
        print(f"cache: {preparation.cache.root}")


def line(kind: KindDone) -> str:
    """Return what was done for one kind, for people."""
    size = f"{kind.n_bytes / 10**6:,.1f} MB"
    return f"{kind.kind}: {kind.done} computed, {kind.reused} reused, {size}, {kind.seconds:.1f} s"


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 20GB, 512MiB or 1000000.

    Raises:
        ConfigError: It is not such a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise ConfigError(f"--budget {text}: expected a size such as 20GB, 512MiB or 1000000")
    return int(float(match[1]) * _UNITS[match[2].upper()])
