"""Cut a node off the network and let it return: `python -m tests.faults.namespace_driver FOLDER`.

The node is a raylet in a network namespace of its own, joined by a pair of virtual interfaces; its
link goes down silently, without a reset, as a failing switch does it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from evomerge.runtime.ray_pool import RayPool
from tests.cluster import scorers
from tests.cluster.drivers import report, say
from tests.cluster.ray_head import free_port

NAME = f"em{os.getpid() % 10_000}"
NET = f"10.{os.getpid() % 200 + 20}.{os.getpid() // 200 % 250}"
RAY = str(Path(sys.executable).with_name("ray"))
COMMON = ["--block", "--disable-usage-stats", "--object-store-memory=100000000"]


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def link(state: str) -> None:
    run("ip", "link", "set", f"{NAME}a", state)


def start(log: Path, *words: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True)


def main(folder: Path) -> None:
    token = folder / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        # A silent node is dead after about 40 seconds: after it has returned here.
        "RAY_health_check_period_ms": "3000",
        "RAY_health_check_timeout_ms": "5000",
        "RAY_health_check_failure_threshold": "5",
    }
    run("ip", "netns", "add", NAME)
    processes: list[subprocess.Popen[bytes]] = []
    inside = ("ip", "netns", "exec", NAME)
    try:
        run(
            "ip",
            "link",
            "add",
            f"{NAME}a",
            "type",
            "veth",
            "peer",
            "name",
            f"{NAME}b",
            "netns",
            NAME,
        )
        run("ip", "addr", "add", f"{NET}.1/24", "dev", f"{NAME}a")
        link("up")
        for words in (
            ("addr", "add", f"{NET}.2/24", "dev", f"{NAME}b"),
            ("link", "set", f"{NAME}b", "up"),
            ("link", "set", "lo", "up"),
        ):
            run(*inside, "ip", *words)
        address = f"{NET}.1:{free_port()}"
        temporary = f"/tmp/{NAME}"
        head = [RAY, "start", "--head", "--num-cpus=1", f"--node-ip-address={NET}.1"]
        head += [
            f"--port={address.split(':')[1]}",
            "--include-dashboard=false",
            f"--temp-dir={temporary}",
        ]
        processes.append(start(folder / "head.log", *head, *COMMON))
        until_up(address)
        node = [RAY, "start", f"--address={address}", "--num-cpus=1", f"--node-ip-address={NET}.2"]
        processes.append(start(folder / "node.log", *inside, *node, *COMMON))
        search(folder, address)
    finally:
        for process in reversed(processes):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        run("ip", "netns", "del", NAME)
        subprocess.run(["rm", "-rf", f"/tmp/{NAME}"], check=False)


def until_up(address: str) -> None:
    import socket

    host, port = address.split(":")
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            socket.create_connection((host, int(port)), 1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(address)


def search(folder: Path, address: str) -> None:
    pool = RayPool(
        partial(scorers.fake, folder, 0.2),
        workers=2,
        address=address,
        gpus_per_worker=0,
        cpus_per_worker=1,
        max_attempts=3,
        timeout_seconds=3.0,
        note=lambda text: say("note", text.splitlines()[0]),
    )
    submitted = open_ = 0

    def work(until, feed: bool = True) -> None:
        nonlocal submitted, open_
        deadline = time.monotonic() + 60
        while not until():
            while feed and open_ < 4:
                pool.submit(scorers.candidate(submitted))
                submitted, open_ = submitted + 1, open_ + 1
            open_ -= report(pool)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{open_} open")

    def begun() -> list[list[str]]:
        path = folder / "begun"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    try:
        work(lambda: len({pid for _, pid, _ in begun()}) == 2)
        work(lambda: not open_, feed=False)
        for _ in range(2):  # on both nodes; the one that is cut off finishes while it is away
            pool.submit(scorers.candidate(submitted, 2.0))
            submitted, open_ = submitted + 1, open_ + 1
        both = {str(submitted - 1), str(submitted - 2)}
        work(lambda: both <= {number for number, _, _ in begun()}, feed=False)
        link("down")
        away = time.monotonic()
        work(lambda: time.monotonic() > away + 5)
        say("scored while it was away")
        link("up")
        back = time.monotonic()
        work(lambda: time.monotonic() > back + 4)  # whatever it still answers comes now
        work(lambda: not open_, feed=False)
        say("submitted", submitted)
    finally:
        pool.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
