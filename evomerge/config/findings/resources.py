"""Memory and disk that a search and an export of it need, against what is here."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from evomerge.config.findings.finding import Finding, good, warn
from evomerge.config.schema import RunConfig
from evomerge.core.amounts import size
from evomerge.runtime.placement import device_memory, is_gpu, pick_device


def memory_finding(config: RunConfig, n_bytes: int) -> Finding:
    """Return whether the workers fit into memory; those on other machines are not looked at.

    Args:
        config: Resolved.
        n_bytes: What one worker keeps, without activations; 0 where a server keeps the model.
    """
    runtime = config.runtime
    n = (runtime.workers or 1) if runtime.executor == "ray" else 1
    is_open = runtime.executor == "ray" and runtime.workers is None
    how_many = "as many workers as there is room for" if is_open else f"{n} worker{'s' * (n > 1)}"
    need = f"{size(n_bytes)} per worker besides activations and pages of files, {how_many}"
    if runtime.address is not None:
        return good("memory", f"{need}; the cluster's machines were not looked at")
    device = pick_device(runtime.device)
    if is_gpu(device):
        there, wanted, where = device_memory(device), n_bytes, "the GPU"
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        wanted, where = n * n_bytes, "this machine"
    if wanted <= there:
        return good("memory", f"{need}; {where} has {size(there)}")
    return warn(
        "memory",
        f"{need}, but {where} has {size(there)}",
        "Use fewer workers (`runtime.workers`), a machine with more memory, or smaller models",
    )


def disk_finding(export_bytes: int) -> Finding:
    """Return whether there is room for an export in the current folder."""
    free = shutil.disk_usage(Path.cwd()).free
    text = f"an export takes {size(export_bytes)}, {size(free)} are free here"
    if export_bytes <= free:
        return good("disk", text)
    remedy = "Free some, or export to another disk (--out); the search itself needs little"
    return warn("disk", f"not enough free disk to export even one model: {text}", remedy)
