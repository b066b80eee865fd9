"""Who answers at a dashboard's address, and who gets to see the token. Real HTTP, no Ray."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from evomerge.errors import ExecutorError
from evomerge.runtime import ray_jobs
from evomerge.runtime.ray_jobs import RayJobs, parsed_address

Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers = []

    def start(seen: list[str | None], answer: Callable[[str | None], int]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                given = self.headers.get("Authorization")
                seen.append(given)
                code = answer(given)
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text("secret\n")
    return "secret"


@pytest.mark.parametrize(
    "address",
    ["", "head:8265", "ray://head:10001", "os://head", "file:///etc/passwd", "http://", "http://h:99999",
     "http://user:password@head:8265"],
)  # fmt: skip
def test_only_http_addresses_are_taken(address: str) -> None:
    with pytest.raises(ExecutorError, match="use http://HOST:8265"):
        RayJobs(address)


def test_a_port_is_known_without_being_given() -> None:
    assert parsed_address("https://ray.example") == ("https", "ray.example:443")


def test_nobody_at_the_address_is_an_error() -> None:
    with pytest.raises(ExecutorError, match=r"nobody answers at http://127\.0\.0\.1:1: "):
        RayJobs("http://127.0.0.1:1")


def test_an_open_cluster_elsewhere_is_refused_and_sees_no_token(
    serve: Serve, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []
    address = serve(seen, lambda _: 200)
    monkeypatch.setattr(ray_jobs, "is_loopback", lambda _: False)
    with pytest.raises(ExecutorError, match=r"has no authentication.*or give --insecure"):
        RayJobs(address)
    assert seen == [None]
    assert ray_jobs._require_closed(address, insecure=True) == ""
    assert seen == [None, None]


def test_an_open_cluster_on_loopback_is_used_without_the_token(serve: Serve, token: str) -> None:
    seen: list[str | None] = []
    assert ray_jobs._require_closed(serve(seen, lambda _: 200), insecure=False) == ""
    assert seen == [None]


def test_the_token_is_sent_only_after_it_was_asked_for(serve: Serve, token: str) -> None:
    seen: list[str | None] = []
    address = serve(seen, lambda given: 200 if given == f"Bearer {token}" else 401)
    assert ray_jobs._require_closed(address, insecure=False) == token
    assert seen == [None, f"Bearer {token}"]


def test_a_wrong_token_is_refused_and_not_shown(serve: Serve, token: str) -> None:
    with pytest.raises(ExecutorError, match="refuses this token") as refused:
        RayJobs(serve([], lambda _: 401))
    assert token not in str(refused.value)


def test_a_missing_token_is_asked_for(
    serve: Serve, token: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ExecutorError, match="wants a token"):
        RayJobs(serve([], lambda _: 401))


@pytest.mark.parametrize("code", [302, 404, 500])
def test_what_is_no_dashboard_is_refused_and_redirects_are_not_followed(
    code: int, serve: Serve, token: str
) -> None:
    seen: list[str | None] = []
    with pytest.raises(ExecutorError, match=f"is not the dashboard of Ray .HTTP status {code}"):
        RayJobs(serve(seen, lambda _: code))
    assert seen == [None]


def test_a_token_over_plain_http_to_another_machine_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert ray_jobs._is_exposed("http://head.example:8265")
    assert not ray_jobs._is_exposed("https://head.example")
    assert not ray_jobs._is_exposed("http://localhost:8265")
