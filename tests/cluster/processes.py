"""Drivers of Ray in processes of their own, of which nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start_driver(module: str, *arguments: object) -> subprocess.Popen[str]:
    """Start `python -m module` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(driver: subprocess.Popen[str], within: float = 120.0) -> list[str]:
    """Return the lines that a driver printed, once it has ended well."""
    try:
        output, _ = driver.communicate(timeout=within)
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
    assert driver.returncode == 0, output
    return output.splitlines()
