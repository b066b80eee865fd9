"""What a head started as docker/ starts it shows to the network: nothing without the token."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cluster.ray_head import TOKEN, end, free_port
from tests.docker.test_manifests import DOCKERFILE, SLURM

METRICS = {
    "RAY_enable_metrics_collection": "0",
    "AUTOSCALER_METRIC_PORT": "65536",
    "DASHBOARD_METRIC_PORT": "65536",
}
SHIPPED = re.compile(r"\b(RAY_AUTH_MODE|RAY_enable_metrics_collection|\w+_METRIC_PORT)=(\S+)")


@pytest.mark.parametrize("text", [DOCKERFILE, SLURM], ids=["Dockerfile", "Slurm"])
def test_token_and_closed_metrics_ports_are_shipped(text: str) -> None:
    assert dict(SHIPPED.findall(text)) == {"RAY_AUTH_MODE": "token", **METRICS}


def own_address() -> str:
    """Return an address of this machine that others could reach, "" without one."""
    found = (
        each.address
        for places in psutil.net_if_addrs().values()
        for each in places
        if each.family == socket.AF_INET and not each.address.startswith("127.")
    )
    return next(found, "")


@pytest.fixture
def head(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    address = own_address()
    if not address:
        pytest.skip("this machine has no address but loopback")
    (tmp_path / "token").touch(0o600)
    (tmp_path / "token").write_text(TOKEN)
    temporary = tempfile.mkdtemp(prefix="emo-", dir="/tmp")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= dict(SHIPPED.findall(DOCKERFILE))
    environment |= {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=0",
        f"--node-ip-address={address}", f"--port={free_port()}", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}",
        f"--temp-dir={temporary}", "--object-store-memory=100000000", "--disable-usage-stats",
    ]  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield address, process
    finally:
        end(process)
        shutil.rmtree(temporary, ignore_errors=True)


def listening(process: subprocess.Popen[bytes]) -> dict[int, str]:
    """Return port -> command of everything that strangers can reach."""
    found = {}
    for each in psutil.Process(process.pid).children(recursive=True):
        try:
            command = " ".join(each.cmdline())[:60]
            connections = each.net_connections("inet")
        except psutil.Error:
            continue
        for connection in connections:
            host = connection.laddr.ip.removeprefix("::ffff:") if connection.laddr else ""
            is_open = connection.status == psutil.CONN_LISTEN and not host.startswith("127.")
            if is_open and host != "::1":
                found[connection.laddr.port] = command
    return found


def asked(url: str) -> int | None:
    """Return the HTTP status of an answer, None where no HTTP is spoken: gRPC wants the token."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError, http.client.HTTPException):
        return None


@pytest.mark.slow
@pytest.mark.cluster
def test_no_port_of_a_head_tells_strangers_anything(
    head: tuple[str, subprocess.Popen[bytes]],
) -> None:
    address, process = head
    until, found = time.monotonic() + 90, {}
    # The agent comes last of those that have a metrics port.
    while not any("Agent" in command for command in found.values()):
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(1)
        found = listening(process)
    time.sleep(5)
    told = {
        f"{command} {path}": status
        for port, command in listening(process).items()
        for path in ("/metrics", "/api/jobs/", "/nodes")
        if (status := asked(f"http://{address}:{port}{path}")) not in (None, 401, 404, 405)
    }
    assert told == {}
