"""What the machine of this process has to offer to workers. Runs on every node of a cluster."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from evomerge.runtime.placement import free_gpu_memory
from evomerge.runtime.placement_plan import NodeFacts

_MEMORY = Path("/proc/meminfo")
_LIMIT = Path("/sys/fs/cgroup/memory.max")
_USED = Path("/sys/fs/cgroup/memory.current")
_USED_FOR = Path("/sys/fs/cgroup/memory.stat")


def local_node() -> NodeFacts:
    """Return what this process may use of its machine: CPUs, free memory, free GPU memory."""
    cpus = float(len(os.sched_getaffinity(0)))
    return NodeFacts(socket.gethostname(), cpus, free_memory(), free_gpu_memory())


def free_memory() -> int:
    """Return the bytes that new processes may take: what the kernel calls available.

    Cached files count as free. A container has no more than its limit leaves.
    """
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    for line in _lines(_MEMORY):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit = next(iter(_lines(_LIMIT)), "max")
    if limit.isdigit():
        used = int(next(iter(_lines(_USED)), "0"))
        # Cached files are part of what is used, and given back before anything is refused.
        rows = (line.partition(" ") for line in _lines(_USED_FOR))
        used -= sum(int(n) for key, _, n in rows if key in ("active_file", "inactive_file"))
        available = min(available, max(0, int(limit) - used))
    return available


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # another system, or no limit
        return []
