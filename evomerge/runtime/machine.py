"""Describe the machine that drives a run, for events.log and reports."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_CPUS = Path("/proc/cpuinfo")
_GPUS = Path("/proc/driver/nvidia/gpus")  # the driver's own list: asking it starts nothing


def machine_line() -> str:
    """Return "machine " and system, processors, memory and GPUs; without names of host or user."""
    n_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    parts = [
        f"{platform.system()} {platform.release()} {platform.machine()}",
        f"{len(os.sched_getaffinity(0))} CPUs of {_field(_CPUS, 'model name') or 'unknown model'}",
        f"{n_bytes / 2**30:.0f} GiB memory",
    ]
    gpus = [_field(path, "Model") or "GPU" for path in sorted(_GPUS.glob("*/information"))]
    return "machine " + ", ".join([*parts, *gpus])


def _field(path: Path, name: str) -> str:
    """Return the first `name: value` of a file of the kernel; "" where there is none."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in pairs if key.strip() == name), "")
