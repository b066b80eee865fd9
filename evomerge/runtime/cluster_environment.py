"""The surroundings of a Ray cluster: environment, token, signal handlers. Does not import Ray.

Ray 2.60 listens on every interface even when it is started for one machine, starts with the
umask of its caller and replaces the SIGTERM handler of the driver; what is here undoes that.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import shutil
import signal
import socket
import stat
import tempfile
import threading
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
OPEN_CLUSTER = (
    "{where} runs Ray without authentication: anyone who reaches it can run code there. "
    f"Start every node with {AUTH_MODE}=token, or use an address on 127.0.0.1"
)


class Surroundings:
    """Environment variables, and possibly a private folder, for as long as a cluster is used."""

    def __init__(self, changes: Mapping[str, str | None], folder: Path | None = None) -> None:
        """Args: changes: variable -> value, or None to remove it; folder: deleted by `restore`."""
        self._folder = folder
        self._before = {name: os.environ.get(name) for name in changes}
        _set_environment(changes)

    def restore(self) -> None:
        """Put the environment back and delete the folder."""
        _set_environment(self._before)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

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
    # Ray's socket paths must stay below 108 characters, so TMPDIR is not used when it is long.
    parent = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="evomerge-", dir=parent if len(parent) <= 20 else "/tmp"))
    token = folder / "token"
    descriptor = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    return Surroundings(
        {
            AUTH_MODE: "token",
            TOKEN: None,
            TOKEN_PATH: str(token),
            LOOPBACK_ONLY: "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        },
        folder,
    )


def remote_surroundings() -> Surroundings:
    """Return what joining a running cluster needs: a token, unless the user switched that off."""
    return Surroundings(
        {AUTH_MODE: os.environ.get(AUTH_MODE, "token"), "RAY_USAGE_STATS_ENABLED": "0"}
    )


def token_file() -> Path | None:
    """Return the file Ray takes the user's token from; None when it is not in a file."""
    if os.environ.get(TOKEN):
        return None
    path = Path(os.environ.get(TOKEN_PATH) or Path.home() / ".ray" / "auth_token")
    return path if path.is_file() else None


def is_readable_by_others(path: Path) -> bool:
    """Return whether group or others may read a file."""
    return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)


def is_loopback(address: str) -> bool:
    """Return whether HOST:PORT is on this machine's loopback interface."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_listener(address: str) -> None:
    """Refuse an address nobody listens on; Ray itself would try for minutes.

    Raises:
        ExecutorError: The address is malformed, or no connection within CONNECT_SECONDS.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ExecutorError(f'runtime.address is {address!r}; use "auto" or HOST:PORT')
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ExecutorError(
            f"no Ray cluster answers at {address}: {error}. Start one there with "
            "`RAY_AUTH_MODE=token ray start --head`, or leave runtime.address out to start one here"
        ) from None


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
