"""The surroundings of a Ray cluster: environment, token, signal handlers. Does not import Ray.

Ray 2.60 listens on every interface even when it is started for one machine, starts with the
umask of its caller and replaces the SIGTERM handler of the driver; what is here undoes that.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import secrets
import shutil
import signal
import socket
import stat
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from evomerge.errors import ExecutorError

# Any interface of the machine, or loopback only: Ray's name for it is about other systems.
LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
AUTH_MODE = "RAY_AUTH_MODE"
TOKEN = "RAY_AUTH_TOKEN"
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
CONNECT_SECONDS = 10.0
FOLDER_PREFIX = "evomerge-ray-"
START_ONE = (
    "Start one there with `RAY_AUTH_MODE=token ray start --head`, or leave runtime.address out "
    "to start one here"
)


class Surroundings:
    """Environment variables, and possibly a private folder, for as long as a cluster is used."""

    def __init__(self, changes: Mapping[str, str | None], folder: Path | None = None) -> None:
        """Args: changes: variable -> value, or None to remove it; folder: deleted by `restore`."""
        self._folder = folder
        # Also when this process ends without `restore`.
        self._remove = weakref.finalize(self, shutil.rmtree, folder or "", ignore_errors=True)
        self._before = {name: os.environ.get(name) for name in changes}
        _set_environment(changes)

    def restore(self) -> None:
        """Put the environment back and delete the folder."""
        _set_environment(self._before)
        self._remove()

    @property
    def ray_folder(self) -> str:
        """Where Ray keeps sockets and logs of a private cluster."""
        return str(self._folder / "ray") if self._folder is not None else ""


def local_surroundings() -> Surroundings:
    """Return what a private cluster on this machine needs.

    A folder only this user can enter holds a fresh token, and Ray's sockets and logs: several
    users and several searches share a machine without seeing each other. Ray opens its own
    folder, one level down, to everybody.
    """
    # Ray's socket paths must stay below 108 characters, so a long TMPDIR is not used.
    parent = tempfile.gettempdir()
    parent = parent if len(parent) <= 16 else "/tmp"
    _sweep(Path(parent))
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=parent))
    file = folder / "token"
    # Never closed: the lock says that this process lives, see `_sweep`.
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.write(descriptor, secrets.token_hex(32).encode())
    return Surroundings(
        {
            AUTH_MODE: "token",
            TOKEN: None,
            TOKEN_PATH: str(file),
            LOOPBACK_ONLY: "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        },
        folder,
    )


def _sweep(parent: Path) -> None:
    """Remove the folders of processes that were killed: their token's lock is free."""
    for path in parent.glob(f"{FOLDER_PREFIX}*/token"):
        try:
            info = path.lstat()
            is_young = time.time() - info.st_mtime < 60.0  # perhaps about to be locked
            if is_young or info.st_uid != os.getuid() or not stat.S_ISREG(info.st_mode):
                continue
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.parent, ignore_errors=True)
        except OSError:  # in use, or somebody else's
            continue


def remote_surroundings(*, is_open: bool) -> Surroundings:
    """Return what joining a running cluster needs; a token is of no use in an open one."""
    mode = "disabled" if is_open else "token"
    return Surroundings({AUTH_MODE: mode, "RAY_USAGE_STATS_ENABLED": "0"})


def exposed_token() -> Path | None:
    """Return the file with the user's token if group or others may read it."""
    path = _token_file()
    exposed = path is not None and stat.S_IMODE(path.stat().st_mode) & 0o077
    return path if exposed else None


def is_loopback(address: str) -> bool:
    """Return whether HOST:PORT is on this machine's loopback interface."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_cluster(address: str, *, insecure: bool = False) -> bool:
    """Check in seconds what Ray would try for minutes: who answers, and is it protected.

    Args:
        address: HOST:PORT.
        insecure: Accept an open cluster on another machine, too.

    Returns:
        Whether the cluster is open, that is, does without a token. Unless `insecure`, only a
        cluster that listens on this machine alone may be.

    Raises:
        ExecutorError: Nobody answers at HOST:PORT, or no Ray; an open cluster; another token.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ExecutorError(f'runtime.address is {address!r}; use "auto" or HOST:PORT')
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise ExecutorError(f"no Ray cluster answers at {address}: {error}. {START_ONE}") from None
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return False  # without Ray's certificates there is nothing to be learned here
    answer = _check_alive(address, "")
    if answer == "OK":
        if not is_loopback(address) and not insecure:
            raise ExecutorError(
                f"the Ray cluster at {address} has no authentication: anyone who reaches it can "
                f"run code there. Start every node with {AUTH_MODE}=token, or give --insecure"
            )
        return True
    if answer != "UNAUTHENTICATED":
        raise ExecutorError(f"what answers at {address} is not Ray: {answer}. {START_ONE}")
    if _check_alive(address, token()) == "UNAUTHENTICATED":
        raise ExecutorError(
            f"the Ray cluster at {address} refuses this token; put the cluster's own into a file "
            f"named by {TOKEN_PATH}, or into ~/.ray/auth_token"
        )
    return False


def _token_file() -> Path | None:
    if os.environ.get(TOKEN):
        return None
    path = Path(os.environ.get(TOKEN_PATH) or Path.home() / ".ray" / "auth_token")
    return path if path.is_file() else None


def token() -> str:
    """Return the user's Ray token, "" without one."""
    path = _token_file()
    return os.environ.get(TOKEN, "") if path is None else path.read_text().strip()


def _check_alive(address: str, secret: str) -> str:
    """Return the gRPC status name of Ray's answer to "are you alive"."""
    import grpc  # type: ignore[import-untyped]  # comes with Ray

    headers = [("authorization", f"Bearer {secret}")] if secret else []
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        check = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            check(b"", timeout=CONNECT_SECONDS, metadata=headers)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


@contextmanager
def guarded() -> Iterator[None]:
    """Start processes with a private umask; keep this process's signal handlers."""
    umask = os.umask(0o077)
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        os.umask(umask)
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
