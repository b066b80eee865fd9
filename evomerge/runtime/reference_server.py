"""Reference server: holds the sources, merges the recipes it is sent, and answers for them.

The server side of docs/endpoint.md, small and correct rather than fast: one model, one request at
a time, greedy. Whoever has the token can have it merge and answer; it reads no paths from requests
and writes nothing to disk.
"""

from __future__ import annotations

import hmac
import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from evomerge.core.ancestry import is_made
from evomerge.core.recipe import Recipe
from evomerge.errors import EvaluationError, EvomergeError, first_line
from evomerge.evaluation.installs import INSTALL_PATH, PROTOCOL, VERSION_PATH
from evomerge.evaluation.subject import Subject
from evomerge.runtime.served_answers import RefusedError, answer_chat, answer_completion
from evomerge.runtime.worker import Worker

MAX_REQUEST_BYTES = 32 * 2**20
MAX_UNREAD_BYTES = 64 * 1024  # of a refused request
IDLE_SECONDS = 300.0  # after which a silent connection is closed


class ReferenceServer:
    """An HTTP server around one worker; `serve_forever` until `close` is called."""

    def __init__(
        self,
        worker: Worker,
        subject: Subject,
        *,
        sources: Mapping[str, str],
        token: str,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """Bind the address; requests are answered from `serve_forever` on.

        Args:
            worker: Installs recipes into `subject`.
            subject: The resident causal language model.
            sources: Source id -> digest of its weights.
            token: What clients must send as a bearer token.
            host: Address to listen on.
            port: 0 picks a free one.

        Raises:
            OSError: The address is taken or not ours.
            ValueError: The token is empty.
        """
        if not token:
            raise ValueError("token is empty; everyone could use the server")
        self._worker, self._subject, self._sources = worker, subject, dict(sources)
        self._lock = threading.Lock()
        self._version: str | None = None
        self._http = _Http((host, port), self, token)

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._http.server_address[:2]
        return f"http://{host if isinstance(host, str) else host.decode()}:{port}"

    def serve_forever(self) -> None:
        """Answer requests until `close`."""
        self._http.serve_forever(poll_interval=0.1)

    def close(self) -> None:
        """Stop listening; call it from another thread than `serve_forever`'s."""
        self._http.shutdown()
        self._http.server_close()

    def answer(self, method: str, path: str, body: Any) -> dict[str, Any]:
        """Return the answer to one request.

        Raises:
            RefusedError: With the HTTP status.
        """
        routes: dict[tuple[str, str], Callable[[Any], dict[str, Any]]] = {
            ("GET", VERSION_PATH): lambda _: self._state(),
            ("POST", INSTALL_PATH): self._install,
            ("GET", "/v1/models"): lambda _: self._models(),
            ("POST", "/v1/completions"): self._asked(answer_completion),
            ("POST", "/v1/chat/completions"): self._asked(answer_chat),
        }
        route = routes.get((method, path))
        if route is None:
            raise RefusedError(404, f"{method} {path} is not offered")
        if method == "POST" and not isinstance(body, dict):
            raise RefusedError(400, "the body must be a JSON object")
        with self._lock:
            try:
                return route(body)
            except EvomergeError as error:
                raise RefusedError(422, first_line(error)) from error

    def _state(self) -> dict[str, Any]:
        return {"protocol": PROTOCOL, "version": self._version, "sources": self._sources}

    def _models(self) -> dict[str, Any]:
        held = [] if self._version is None else [{"id": self._version, "object": "model"}]
        return {"object": "list", "data": held}

    def _install(self, body: dict[str, Any]) -> dict[str, Any]:
        self._version = None  # until it is done: a failed install leaves no model to ask
        recipe = Recipe.from_json(body.get("recipe", {}), where="recipe")
        recipes = (recipe, *recipe.closure().values())
        named = {source for part in recipes for source in part.sources if not is_made(source)}
        unknown = sorted(named - set(self._sources))
        if unknown:
            raise EvaluationError(f"recipe: source {unknown[0]!r} is not held here")
        self._subject.name = f"evomerge-{recipe.digest()}"
        digest = self._worker.install(recipe)
        self._version = self._subject.name
        return {"version": self._version, "weights_digest": digest}

    def _asked(
        self, answer: Callable[[Subject, dict[str, Any]], dict[str, Any]]
    ) -> Callable[[Any], dict[str, Any]]:
        def checked(body: dict[str, Any]) -> dict[str, Any]:
            if self._version is None or body.get("model") != self._version:
                raise RefusedError(
                    409, f"model is {body.get('model')!r}, {self._version!r} is installed"
                )
            return {"model": self._version, **answer(self._subject, body)}

        return checked


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], service: ReferenceServer, token: str) -> None:
        super().__init__(address, _Handler)
        self.service = service
        self.authorization = f"Bearer {token}".encode()


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        self._respond("GET")

    def do_POST(self) -> None:
        self._respond("POST")

    def _respond(self, method: str) -> None:
        status = 200
        try:
            reply = self.server.service.answer(method, self.path, self._body(method))
        except RefusedError as error:
            status, reply = error.status, {"error": {"message": str(error)}}
        except Exception as error:
            message = f"{type(error).__name__}: {first_line(error)}"
            status, reply = 500, {"error": {"message": message}}
        content = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")  # or a client sends its next request into it
        self.end_headers()
        self.wfile.write(content)

    def _turn_away(self) -> None:
        """End the connection after the answer; a short body is read, else it could reset it."""
        self.close_connection = True
        size = self.headers.get("Content-Length", "")
        if size.isdecimal():
            self.rfile.read(min(int(size), MAX_UNREAD_BYTES))

    def _body(self, method: str) -> Any:
        given = self.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, self.server.authorization):
            self._turn_away()
            raise RefusedError(401, "the bearer token is missing or wrong")
        if method == "GET":
            return None
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or int(size) > MAX_REQUEST_BYTES:
            self._turn_away()
            raise RefusedError(413, f"a body of at most {MAX_REQUEST_BYTES} bytes is read")
        try:
            return json.loads(self.rfile.read(int(size)))
        except (ValueError, RecursionError):
            raise RefusedError(400, "the body is not JSON") from None

    def log_message(self, *_: object) -> None:
        """Say nothing: prompts are nobody else's business."""
