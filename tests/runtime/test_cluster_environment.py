from __future__ import annotations

import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from evomerge.config.schema import RuntimeConfig
from evomerge.errors import ExecutorError
from evomerge.runtime import cluster_environment
from evomerge.runtime.cluster_environment import (
    exposed_token,
    guarded,
    is_loopback,
    local_surroundings,
    remote_surroundings,
    require_cluster,
)

Serve = Callable[..., str]


class Control(grpc.GenericRpcHandler):
    """Answers like Ray's control store, which checks a token or does not."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def service(self, details):
        def answer(request, context):
            headers = dict(context.invocation_metadata())
            if self._token and headers.get("authorization") != f"Bearer {self._token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b""

        if details.method != "/ray.rpc.NodeInfoGcsService/CheckAlive":
            return None
        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers = []

    def start(token: str | None = None, host: str = "127.0.0.1") -> str:
        server = grpc.server(ThreadPoolExecutor(1))
        server.add_generic_rpc_handlers((Control(token),))
        port = server.add_insecure_port(f"{host}:0")
        server.start()
        servers.append(server)
        return f"{host}:{port}"

    yield start
    for server in servers:
        server.stop(None).wait()


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("address", ["nonsense", "host", "host:", "host:port", "127.0.0.1:99999"])
def test_a_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(ExecutorError, match=r'use "auto" or HOST:PORT'):
        require_cluster(address)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no-such-host.invalid:6379"])
def test_an_address_nobody_listens_on_is_refused_at_once(address: str) -> None:
    with pytest.raises(ExecutorError, match="no Ray cluster answers"):
        require_cluster(address)


def test_a_listener_that_is_not_ray_is_refused_in_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster_environment, "CONNECT_SECONDS", 1.0)
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(ExecutorError, match=f"what answers at {address} is not Ray"):
            require_cluster(address)
    assert time.monotonic() - started < 10


def test_an_open_cluster_is_accepted_on_loopback_only(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, no_token: None
) -> None:
    address = serve()
    assert require_cluster(address)
    monkeypatch.setattr(cluster_environment, "is_loopback", lambda address: False)
    with pytest.raises(ExecutorError, match="has no authentication"):
        require_cluster(address)


def test_an_open_cluster_elsewhere_is_joined_only_when_that_is_said(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, no_token: None
) -> None:
    monkeypatch.setattr(cluster_environment, "is_loopback", lambda address: False)
    address = serve()
    with pytest.raises(ExecutorError, match="or give --insecure"):
        require_cluster(address)
    assert require_cluster(address, insecure=True)


def test_insecure_is_no_key_of_a_config() -> None:
    # A stranger's config must not be able to ask for it.
    assert "insecure" not in RuntimeConfig.model_fields


def test_the_right_token_is_accepted(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, no_token: None, tmp_path: Path
) -> None:
    address = serve(token="secret")
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert not require_cluster(address)


@pytest.mark.parametrize("token", ["", "wrong"])
def test_a_wrong_or_missing_token_is_refused(
    token: str, serve: Serve, monkeypatch: pytest.MonkeyPatch, no_token: None
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with pytest.raises(ExecutorError, match="refuses this token"):
        require_cluster(serve(token="secret"))


def test_a_token_that_others_can_read_is_found(
    monkeypatch: pytest.MonkeyPatch, no_token: None, tmp_path: Path
) -> None:
    assert exposed_token() is None
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o600)
    assert exposed_token() is None
    token.chmod(0o644)
    assert exposed_token() == token
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from the environment")
    assert exposed_token() is None


def test_local_surroundings_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the user's")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    surroundings = local_surroundings()
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o777 == 0o700
    assert len(token.read_text()) == 64
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_TOKEN" not in os.environ
    surroundings.restore()
    assert not token.parent.exists()
    assert os.environ["RAY_AUTH_TOKEN"] == "the user's"
    assert "RAY_AUTH_MODE" not in os.environ


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose name leaves room for Ray's socket paths."""
    with tempfile.TemporaryDirectory(prefix="e", dir="/tmp") as name:
        yield Path(name)


def test_what_a_killed_process_left_is_swept(
    monkeypatch: pytest.MonkeyPatch, short_folder: Path
) -> None:
    parent = short_folder
    monkeypatch.setattr("tempfile.tempdir", str(parent))
    old = time.time() - 3600
    for name in ("dead", "young"):
        (parent / f"evomerge-ray-{name}").mkdir()
        (parent / f"evomerge-ray-{name}" / "token").write_text("secret")
    os.utime(parent / "evomerge-ray-dead" / "token", (old, old))
    first = local_surroundings()
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    os.utime(token, (old, old))  # old, but its process lives
    second = local_surroundings()
    assert token.exists()
    assert not (parent / "evomerge-ray-dead").exists()
    assert (parent / "evomerge-ray-young").exists()
    second.restore()
    first.restore()
    assert [path.name for path in parent.iterdir()] == ["evomerge-ray-young"]


def test_joining_an_open_cluster_does_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "other")
    for is_open, mode in ((True, "disabled"), (False, "token")):
        surroundings = remote_surroundings(is_open=is_open)
        assert os.environ["RAY_AUTH_MODE"] == mode
        surroundings.restore()
    assert os.environ["RAY_AUTH_MODE"] == "other"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1", True),
        ("127.8.0.1:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("10.0.0.1:1", False),
        ("0.0.0.0:1", False),
        ("localhost.example.org:1", False),
    ],
)
def test_loopback_addresses_are_told_apart(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


def test_guarded_keeps_handlers_and_umask() -> None:
    before, umask = signal.getsignal(signal.SIGTERM), os.umask(0o022)
    try:
        with guarded():
            assert os.umask(0o077) == 0o077
            signal.signal(signal.SIGTERM, lambda *_: None)
        assert signal.getsignal(signal.SIGTERM) is before
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(umask)
