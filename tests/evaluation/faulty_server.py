"""A real HTTP server on loopback that misbehaves on demand."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Faulty:
    """What the server does: each request takes the next of `moves`, then `answer` for good.

    `answer` returns what is sent as JSON, or (status, that). A move is a status, "garbage", "slow", "drip", "drop", or (status, headers).
    """

    def __init__(self, answer: Callable[[str, dict | None], object], moves=()):
        self.answer, self.moves = answer, list(moves)
        self.requests: list[tuple[str, dict | None]] = []
        self.keys: list[str | None] = []
        self.most_at_once = self._at_once = 0
        self.lock = threading.Lock()
        self.pause = 0.0
        self.says = "no"
        self.url = ""

    def begin(self):
        with self.lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            return self.moves.pop(0) if self.moves else None

    def end(self):
        with self.lock:
            self._at_once -= 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.respond(None)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.respond(json.loads(body))

    def respond(self, body):
        faulty = self.server.faulty
        move = faulty.begin()
        faulty.requests.append((self.path, body))
        faulty.keys.append(self.headers.get("Authorization"))
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.act(faulty, move, body)
        finally:
            faulty.end()

    def act(self, faulty, move, body):
        time.sleep(faulty.pause)
        status, headers = move if isinstance(move, tuple) else (move, {})
        if move == "drop":
            self.close_connection = True
            self.connection.close()
        elif move == "slow":
            faulty.released.wait(5)
        elif move == "drip":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            while not faulty.released.wait(0.02):
                self.wfile.write(b" ")
                self.wfile.flush()
        elif move == "garbage":
            self.send(200, b"<html>welcome</html>", {})
        elif isinstance(status, int):
            self.send(status, json.dumps({"error": {"message": faulty.says}}).encode(), headers)
        else:
            answer = faulty.answer(self.path, body)
            status, said = answer if isinstance(answer, tuple) else (200, answer)
            self.send(status, json.dumps(said).encode(), {})

    def send(self, status, content, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def running(faulty: Faulty) -> Iterator[Faulty]:
    """Serve in a thread."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.faulty = faulty
    faulty.released = threading.Event()
    faulty.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield faulty
    finally:
        faulty.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
