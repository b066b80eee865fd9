"""A real S3 server (moto's) as a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

BUCKET = "population-bucket"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class S3Server:
    """The server's process; `env` is what a client of it needs."""

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        self.env = {
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "not-a-secret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
        }
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-p", str(self.port)],
                stdout=output,
                stderr=output,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self._make_bucket(log)

    def _make_bucket(self, log: Path) -> None:
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=self.env["AWS_ENDPOINT_URL"],
            aws_access_key_id="tester",
            aws_secret_access_key="not-a-secret",
            region_name="us-east-1",
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                client.create_bucket(Bucket=BUCKET)
                return
            except Exception:
                assert time.monotonic() < deadline, log.read_text()
                assert self.process.poll() is None, log.read_text()
                time.sleep(0.1)

    def pause(self) -> None:
        """Let requests hang."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def running_s3(log: Path):
    server = S3Server(log)
    try:
        yield server
    finally:
        server.go_on()
        server.process.kill()
        server.process.wait()
