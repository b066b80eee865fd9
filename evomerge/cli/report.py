"""`evomerge report`: one HTML file about a run, or a page that follows it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from evomerge.cli.output import say
from evomerge.config.locate import locate
from evomerge.config.results import RunResults
from evomerge.errors import ConfigError, RunError
from evomerge.report.data import report_data
from evomerge.report.live import serve
from evomerge.report.page import render
from evomerge.storage.atomic import write_atomically


def report_command(
    run: Path,
    out: Path | None,
    *,
    live: bool,
    port: int | None,
    token: str | None,
    as_json: bool,
) -> None:
    """Write a report, or serve a live one until interrupted.

    Raises:
        ConfigError: Options contradict each other.
        RunError: There is nothing to report, or the file cannot be written.
    """
    if live == (out is not None):
        raise ConfigError("give either --out FILE, or --live for a page that follows the run")
    if not live and (port is not None or token is not None):
        raise ConfigError("--port and --token belong to --live")
    if token is not None and not _is_plain(token):
        raise ConfigError(
            "--token must have 8 or more letters, digits, '-' and '_': it is part of an address"
        )
    folder = locate(run)
    if out is None:

        def ready(address: str) -> None:
            if as_json:
                print(json.dumps({"address": address}), flush=True)
            else:
                print(address, flush=True)
                say("live report; Ctrl-C ends it and leaves the run alone")

        # Also where a shell started it in the background, with Ctrl-C ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        serve(folder, port=port or 0, token=token, on_ready=ready)
        return
    data = report_data(RunResults(folder))
    page = render(data).encode()
    try:
        write_atomically(out, page)
    except OSError as error:
        if not out.parent.is_dir():
            raise RunError(
                f"{out}: cannot be written: there is no folder {out.parent}. Make it first, or "
                "give another --out"
            ) from None
        raise RunError(f"{out}: cannot be written: {error.strerror or error}") from None
    if as_json:
        print(json.dumps({"file": str(out), "bytes": len(page)}))
    else:
        print(f"report -> {out}  ({len(page) / 1e6:.1f} MB, opens offline)")


def _is_plain(token: str) -> bool:
    letters = token.replace("-", "").replace("_", "")
    return len(token) >= 8 and letters.isascii() and (letters.isalnum() or not letters)
