"""How kernels are compiled, and kept on disk so that only the first process has to wait for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile

from evomerge.merging import philox, sums

inline: Callable[..., Any] = njit(nogil=True, error_model="numpy", inline="always")
_compiled: Callable[..., Any] = njit(nogil=True, error_model="numpy")


def jit(function: Callable[..., Any]) -> Any:
    """Return a function that is compiled when it is first called with arguments of some types.

    Its closure, which is part of its key on disk, must hold plain values: functions have another
    key in every process.
    """
    dispatcher = _compiled(function)
    # Without a folder that can be written, every process compiles for itself.
    with suppress(RuntimeError):
        dispatcher._cache = KernelCache(function)
    return dispatcher


def _sources_digest() -> str:
    """Return a digest of the files whose code or constants kernels are made of."""
    others = [Path(str(module.__file__)) for module in (philox, sums)]
    files = [*sorted(Path(__file__).parent.glob("*.py")), *others]
    contents = (file.read_bytes() for file in files if file.is_file())
    return hashlib.sha256(b"".join(contents)).hexdigest()


class KernelCache(FunctionCache):  # type: ignore[misc]
    """numba's cache on disk, with an index file for each kernel.

    numba has one for all kernels of a function, and two processes that write it at once can file
    one kernel under another's key; a damaged file ends every later process, and a kernel is not
    compiled again after a change of what it takes from other files.
    """

    _digest = _sources_digest()

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the kernel for arguments of these types, None if it is absent or damaged."""
        target_context.refresh()
        self._choose(sig, target_context.codegen())
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # a damaged pickle can raise anything; the kernel is compiled again
            with suppress(OSError):
                self._cache_file.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a kernel; where the disk is full, it is compiled again next time."""
        self._choose(sig, data.codegen)
        with suppress(OSError):
            super().save_overload(sig, data)

    def _choose(self, sig: Any, codegen: Any) -> None:
        key = hashlib.sha256(repr(self._index_key(sig, codegen)).encode()).hexdigest()
        self._cache_file = IndexDataCacheFile(
            cache_path=self._cache_path,
            filename_base=f"{self._impl.filename_base}-{key[:16]}",
            source_stamp=self._digest,
        )
