"""A real Ray head with dashboard on loopback, in processes of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

TOKEN = "a-token-that-must-not-be-seen-anywhere-0123456789"


@dataclass(frozen=True)
class Head:
    url: str
    environment: dict[str, str]
    temporary: Path
    process: subprocess.Popen[bytes]

    def below(self) -> list[psutil.Process]:
        """Return everything the head has started, jobs and their drivers included."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self) -> None:
        """End all of it at once, as a power cut does."""
        everything = [psutil.Process(self.process.pid), *self.below()]
        for process in everything:
            process.suspend()  # so that none sees another one die
        for process in everything:
            process.kill()
        self.process.wait()
        psutil.wait_procs(everything, timeout=20)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def ray_head(folder: Path, *, has_token: bool = True) -> Iterator[Head]:
    """Start a head and wait for its dashboard; everything of it is gone afterwards."""
    temporary = Path(tempfile.mkdtemp(prefix="emj-", dir="/tmp"))  # Ray's socket paths are short
    file = folder / "ray-token"
    file.touch(0o600)
    file.write_text(TOKEN)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "RAY_AUTH_MODE": "token" if has_token else "disabled",
        "RAY_AUTH_TOKEN_PATH": str(file),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every listener on loopback
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    port = free_port()
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2",
        f"--port={free_port()}", f"--dashboard-port={port}", "--dashboard-host=127.0.0.1",
        f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={temporary}",
        "--object-store-memory=100000000", "--disable-usage-stats",
    ]  # fmt: skip
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(f"{url}/api/jobs/", process, folder / "head.log")
        yield Head(url, environment, temporary, process)
    finally:
        end(process)
        shutil.rmtree(temporary, ignore_errors=True)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError as error:
            if error.code == 401:
                return
        except OSError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"no dashboard at {url}: {log.read_text()[-2000:]}")


def end(process: subprocess.Popen[bytes]) -> None:
    """End `ray start --block`, which ends what it started when it is asked to."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
