"""`evomerge schema`: the JSON schema of config files."""

from __future__ import annotations

import json
from pathlib import Path

from evomerge.config.json_schema import config_schema
from evomerge.errors import RunError
from evomerge.storage.atomic import write_atomically


def schema_command(out: Path | None, *, as_json: bool) -> None:
    """Print the schema, or write it to a file.

    Args:
        out: File to write; None: standard output.
        as_json: Say in JSON what was written; the schema itself is JSON anyway.

    Raises:
        RunError: The file cannot be written.
    """
    text = json.dumps(config_schema(), indent=1)
    if out is None:
        print(text)
        return
    try:
        write_atomically(out, text.encode() + b"\n")
    except OSError as error:
        raise RunError(f"{out}: cannot be written: {error.strerror or error}") from None
    print(json.dumps({"file": str(out)}) if as_json else f"schema -> {out}")
