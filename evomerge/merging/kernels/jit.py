"""How functions are compiled: without the interpreter's lock, and kept on disk where that is possible.

A kernel on disk is looked up by its own file's time stamp, its argument types and the values of its
closure. So a kernel's closure must hold plain values only (a function in it would get another key
in every process), and after a change of what kernels call from other files, theirs must be saved
again, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

inline: Callable[..., Any] = njit(nogil=True, error_model="numpy", inline="always")
_compiled: Callable[..., Any] = njit(nogil=True, error_model="numpy")
_kept_on_disk: Callable[..., Any] = njit(nogil=True, error_model="numpy", cache=True)


def jit(function: Callable[..., Any]) -> Any:
    """Return a function that is compiled when it is first called with arguments of some types."""
    try:
        return _kept_on_disk(function)
    except RuntimeError:  # no folder can be written: every process compiles for itself
        return _compiled(function)
