"""Compiled kernels on several threads: pieces of a tensor, which whoever is free takes.

The thread that asks begins at once, the others join it once they are awake, which takes tens of
microseconds, as long as a small matrix takes to merge. They are kept: starting threads for every
tensor took a quarter of a millisecond each time.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache

import torch

from evomerge.merging.philox import RUN

# Fewer elements per thread are not worth waking one.
_PER_THREAD = 1 << 18
# Elements of a piece, at least: each costs a call from Python.
_PIECE = 1 << 17
_PIECES_PER_THREAD = 8


def in_threads(kernel: Callable[[int, int], bool], n_elements: int, *, run: int = RUN) -> bool:
    """Call `kernel(start, stop)` on whole runs, on as many threads as torch uses; all must hold.

    Args:
        kernel: Leaves the interpreter's lock alone while it works; is called from any thread.
        n_elements: How many there are in all.
        run: Pieces begin at multiples of this, so that the number of threads changes no bit.
    """
    n_threads = min(torch.get_num_threads(), n_elements // _PER_THREAD)
    if n_threads <= 1:
        return bool(kernel(0, n_elements))
    piece = max(_PIECE, n_elements // (n_threads * _PIECES_PER_THREAD))
    step = -(-piece // run) * run
    starts = deque(range(0, n_elements, step))

    def work() -> bool:
        hold = True
        while True:
            try:
                start = starts.popleft()
            except IndexError:
                return hold
            hold &= kernel(start, min(start + step, n_elements))

    helpers = _helpers(torch.get_num_threads() - 1, os.getpid())
    helping = [helpers.submit(work) for _ in range(n_threads - 1)]
    try:
        hold = work()
    finally:  # even after an error: what others have begun ends before memory goes
        starts.clear()
        wait(joined := [future for future in helping if not future.cancel()])
    return hold and all([future.result() for future in joined])


@lru_cache(maxsize=4)
def _helpers(n_threads: int, _pid: int) -> ThreadPoolExecutor:
    """Return threads of this process; a fork has none of its parent's."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="merge")
