"""A page on loopback that follows a running search; it only reads."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from evomerge.config.results import RunResults
from evomerge.errors import EvomergeError, RunError
from evomerge.report.data import report_data
from evomerge.report.page import render
from evomerge.report.validation import validation_stamp
from evomerge.storage.journal_follower import JournalFollower
from evomerge.storage.run_store import RunFolder

HOST = "127.0.0.1"
DATA = "data.json"


class Follower:
    """The newest report data of a run, computed again only when the run has moved on."""

    def __init__(self, folder: RunFolder) -> None:
        """Read nothing yet."""
        self._folder = folder
        self._journal = JournalFollower(folder.journal)
        self._lock = threading.Lock()
        self._version = ""
        self._data: dict[str, Any] = {}
        self._not_before = 0.0  # of the monotonic clock

    def newest(self) -> tuple[str, dict[str, Any]]:
        """Return a version that changes with the run, and its report data.

        Raises:
            RunError: Nothing was evaluated yet.
            JournalError: The journal is damaged.
        """
        with self._lock:
            started = time.monotonic()
            if started < self._not_before:
                return self._version, self._data
            self._folder.refresh()
            self._journal.poll()
            state = "driven" if self._folder.is_driven() else "still"
            validated = validation_stamp(self._folder)
            version = f"{self._journal.chain}-{state}-{validated}"
            if version != self._version:
                results = RunResults(self._folder, events=self._journal.events)
                self._data, self._version = report_data(results), version
                # The search may need the processor: at most a tenth of its time goes to reports.
                self._not_before = started + 10 * (time.monotonic() - started)
            return self._version, self._data


def open_server(folder: RunFolder, *, port: int, token: str | None) -> _Server:
    """Return a server that listens on loopback; see `serve`.

    Attributes set on it: `address`, the page's.
    """
    follower = Follower(folder)
    render(follower.newest()[1])  # fails here rather than in the browser
    secret = token or secrets.token_urlsafe(16)
    try:
        server = _Server((HOST, port), partial(_Handler, follower, secret))
    except OSError as error:
        raise RunError(f"port {port} of {HOST}: {error.strerror or error}; try --port 0") from None
    server.address = f"http://{HOST}:{server.server_port}/{secret}/"
    return server


def serve(
    folder: RunFolder, *, port: int, token: str | None, on_ready: Callable[[str], None]
) -> None:
    """Serve a live report on loopback until interrupted.

    Args:
        folder: The run.
        port: 0 takes a free one.
        token: Part of the address without which nothing is served; None: a random one.
        on_ready: Called with the address.

    Raises:
        RunError: The port cannot be had, or there is nothing to show yet.
        PreflightError: plotly is not installed.
    """
    with open_server(folder, port=port, token=token) as server:
        on_ready(server.address)
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:  # the ordinary end
            return


class _Server(ThreadingHTTPServer):
    """One thread per request; none of them keeps the process alive."""

    daemon_threads = True
    address = ""


class _Handler(BaseHTTPRequestHandler):
    """Answers GET of the page and its data to those who know the token."""

    server_version = "evomerge"
    sys_version = ""

    def __init__(self, follower: Follower, token: str, *arguments: Any) -> None:
        self._follower, self._token = follower, token
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Serve ``/TOKEN/`` and ``/TOKEN/data.json?seen=VERSION``."""
        address = urlsplit(self.path)
        _, _, rest = address.path.partition("/")
        token, slash, name = rest.partition("/")
        if not self._is_local() or not secrets.compare_digest(token.encode(), self._token.encode()):
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"not found")
            return
        if not slash or name not in ("", DATA):
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"not found")
            return
        try:
            version, data = self._follower.newest()
        except EvomergeError as error:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", str(error).encode())
            return
        if name == "":
            page = render(data, live=DATA).encode()
            self._answer(HTTPStatus.OK, "text/html", page)
        elif parse_qs(address.query).get("seen") == [version]:
            self._answer(HTTPStatus.NO_CONTENT, "application/json", b"")
        else:
            body = json.dumps(data, allow_nan=False).encode()
            self._answer(HTTPStatus.OK, "application/json", body, version)

    def _is_local(self) -> bool:
        # Another site's page could point a name of its own at loopback (DNS rebinding).
        host = self.headers.get("Host", "").rpartition(":")[0]
        return host in (HOST, "localhost")

    def _answer(self, status: HTTPStatus, kind: str, body: bytes, version: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Referrer-Policy", "no-referrer")
        if version:
            self.send_header("ETag", version)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Stay quiet: the terminal belongs to the command."""
