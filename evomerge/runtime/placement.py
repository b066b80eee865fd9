"""Where workers run: devices, threads and how many workers. The only module that names CUDA."""

from __future__ import annotations

import gc
import os
import re

from evomerge.errors import ConfigError


def check_device(wanted: str) -> None:
    """Raise ConfigError unless `wanted` can be the name of a device, here or on a worker."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", wanted):
        raise ConfigError(f"runtime.device is {wanted!r}; use auto, cpu or cuda:N")


def is_gpu(device: str) -> bool:
    """Return whether a device's name is that of a GPU."""
    return device.startswith("cuda")


def pick_device(wanted: str) -> str:
    """Return "cpu" or "cuda:N" for a config's `runtime.device`.

    Raises:
        ConfigError: The name is unknown, or a GPU is asked for that torch does not see.
    """
    import torch

    check_device(wanted)
    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda"):
        count = torch.cuda.device_count()
        index = int(wanted.partition(":")[2] or 0)
        if index >= count:
            raise ConfigError(f"runtime.device is {wanted!r}, but torch sees {count} GPUs")
        return f"cuda:{index}"
    return wanted


# Below this many parameters one thread is as fast as two, and far faster on a busy machine.
SMALL_MODEL = 8_000_000


def threads_per_worker(workers: int, n_parameters: int) -> int:
    """Return how many CPU threads each of `workers` on this machine gets."""
    if n_parameters < SMALL_MODEL:
        return 1
    return max(1, len(os.sched_getaffinity(0)) // workers)


def use_threads(threads: int) -> None:
    """Let torch use this many CPU threads in this process."""
    import torch

    torch.set_num_threads(threads)


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
