"""`evomerge serve`: the reference server for searches whose workers hold no model."""

from __future__ import annotations

import os
import secrets
import signal
import threading
from pathlib import Path

from evomerge.cli.output import say
from evomerge.config.schema import load_config
from evomerge.config.serve import build_server

TOKEN = "EVOMERGE_SERVER_TOKEN"  # environment variable; no token itself


def serve_command(config_path: Path, *, host: str, port: int, overrides: list[str]) -> None:
    """Serve a config's models until interrupted.

    The first line on stdout is the address; a token that was made up follows on the second.
    """
    config = load_config(config_path, overrides)
    given = os.environ.get(TOKEN, "")
    token = given or secrets.token_urlsafe(32)
    base_dir = config_path.resolve().parent
    server = build_server(config, base_dir, host=host, port=port, token=token)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    print(server.url, flush=True)
    if not given:
        print(f"export {TOKEN}={token}", flush=True)
    stopped.wait()
    server.close()
    say("stopped")
