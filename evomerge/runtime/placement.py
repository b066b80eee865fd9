"""Where workers run: devices, threads and how many workers. The only module that names CUDA."""

from __future__ import annotations

import gc
import math
import os
import re
import shutil
import subprocess
from importlib.util import find_spec

from evomerge.errors import ConfigError, UnavailableError


def check_device(wanted: str) -> None:
    """Raise ConfigError unless `wanted` can be the name of a device, here or on a worker."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3}|:all)?", wanted):
        raise ConfigError(f"runtime.device is {wanted!r}; use auto, cpu, cuda:N or cuda:all")


def is_gpu(device: str) -> bool:
    """Return whether a device's name is that of a GPU."""
    return device.startswith("cuda")


def is_every_gpu(device: str) -> bool:
    """Return whether a `runtime.device` divides one model over all GPUs."""
    return device == "cuda:all"


def pick_device(wanted: str) -> str:
    """Return "cpu" or "cuda:N" for a config's `runtime.device`; of several the first one.

    Raises:
        ConfigError: The name is unknown, or a GPU is asked for that torch does not see.
    """
    import torch

    check_device(wanted)
    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda"):
        count = torch.cuda.device_count()
        index = int(wanted.partition(":")[2].replace("all", "") or 0)
        if index >= count:
            raise ConfigError(f"runtime.device is {wanted!r}, but torch sees {count} GPUs")
        return f"cuda:{index}"
    return wanted


# Of the free memory of a GPU that layers may take: activations, keys and values and the tensor that
# is being merged need the rest.
SPREAD_SHARE = 0.75


def device_of_ray_worker(wanted: str) -> str:
    """Return the device of a worker to which Ray shows the GPUs it has reserved, and no others."""
    import torch

    return "cuda:all" if wanted == "auto" and torch.cuda.device_count() > 1 else wanted


def spread_of(wanted: str) -> dict[int | str, int] | None:
    """Return GPU -> bytes that layers may take there, for "cuda:all"; None for one device.

    A model that fits on the first GPU stays there whole.

    Raises:
        UnavailableError: accelerate, which divides models, is not installed.
    """
    if wanted != "cuda:all":
        return None
    import torch

    if torch.cuda.device_count() < 2:
        return None
    if find_spec("accelerate") is None:
        raise UnavailableError(
            "a model over several GPUs needs accelerate: pip install 'evomerge[multi-gpu]'"
        )
    free = (torch.cuda.mem_get_info(n)[0] for n in range(torch.cuda.device_count()))
    return {number: int(n_bytes * SPREAD_SHARE) for number, n_bytes in enumerate(free)}


# Below this many parameters one thread is as fast as two, and far faster on a busy machine.
SMALL_MODEL = 8_000_000


def threads_per_worker(workers: int, n_parameters: int, cpus: float | None = None) -> int:
    """Return how many CPU threads each of `workers` gets.

    Args:
        workers: On this machine.
        n_parameters: Of the model.
        cpus: What each reserves on other machines; None where they share this one.
    """
    if n_parameters < SMALL_MODEL:
        return 1
    if cpus is not None:
        return max(1, int(cpus))
    return max(1, len(os.sched_getaffinity(0)) // workers)


def use_threads(threads: int) -> None:
    """Let torch use this many CPU threads in this process."""
    import torch

    torch.set_num_threads(threads)


def default_look_ahead(workers: int) -> int:
    """Return how many candidates may be in flight where the config does not say.

    Three per worker keep up to eight workers busy although results are told in the order they were
    asked for. The more workers, the later the slowest of those under way, and the likelier one
    that hangs: one candidate more per worker for every doubling (see docs/results.md).
    """
    return math.ceil(workers * (3 + max(0.0, math.log2(workers / 8))))


def default_workers(executor: str, cpus_per_worker: float) -> int:
    """Return how many workers to use when the config does not say.

    In process there is one. On Ray: one per GPU of this machine, or one per CPU share where
    there is none.
    """
    if executor == "in-process":
        return 1
    import torch

    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return max(1, int(len(os.sched_getaffinity(0)) / cpus_per_worker))


def device_memory(device: str) -> int:
    """Return the bytes of memory of one GPU, in use or not."""
    import torch

    return int(torch.cuda.get_device_properties(torch.device(device)).total_memory)


def free_gpu_memory() -> tuple[int, ...]:
    """Return the free bytes of each GPU that this process may use; nothing is allocated on them.

    The driver's own tool is asked first: torch would say how large a GPU is, not what is free,
    without a context of several hundred megabytes on it.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "":
        return ()
    rows = _nvidia_smi()
    if rows:
        wanted = None if visible is None else {name.strip() for name in visible.split(",")}
        return tuple(n for keys, n in rows if wanted is None or wanted & keys)
    import torch

    if not torch.cuda.is_available():
        return ()
    count = range(torch.cuda.device_count())
    return tuple(int(torch.cuda.get_device_properties(n).total_memory) for n in count)


def _nvidia_smi() -> list[tuple[set[str], int]]:
    """Return (index and UUID, free bytes) of every GPU; [] where there is no such tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=index,uuid,memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        rows = [line.split(", ") for line in answer.stdout.splitlines()]
        return [({index, uuid}, int(mebibytes) * 2**20) for index, uuid, mebibytes in rows]
    except (OSError, ValueError, subprocess.SubprocessError):  # no driver, or another format
        return []


def worker_environment(gpus: float) -> dict[str, str]:
    """Return environment variables of a worker process that reserved this many GPUs.

    Without a reservation Ray leaves every GPU visible: such a worker must see none, or all of
    them would end up on the first one.
    """
    return {} if gpus > 0 else {"CUDA_VISIBLE_DEVICES": ""}


def release_memory() -> None:
    """Give unused memory back after an evaluation ran out of it."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
