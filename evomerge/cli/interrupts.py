"""Ctrl-C where Python would lose it."""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_AGAIN_SECONDS = 0.05


class _Hook:
    """Has lost interrupts come again, and leaves everything else to the hook before."""

    def __init__(self, before: Callable[[UnraisableHookArgs], Any]) -> None:
        self._before = before

    def __call__(self, unraisable: UnraisableHookArgs, /) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._before(unraisable)
            return
        # Later and from another thread: raised here it would be ignored once more.
        again = threading.Timer(_AGAIN_SECONDS, _thread.interrupt_main)
        again.daemon = True
        again.start()


def keep_interrupts() -> None:
    """Have a Ctrl-C that lands in a `__del__` or a callback of the collector come again.

    Nothing can be raised there: Python prints "Exception ignored" and goes on as if nobody had
    pressed a key. Imports of large libraries run many such functions.
    """
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)


def forget_interrupts() -> None:
    """Have the process end with its own exit code after a Ctrl-C that was handled.

    A KeyboardInterrupt that passed through `exec` or `eval` of text (named tuples and data
    classes are made so, hundreds during an import) has `python -m` die of SIGINT at its very
    end, whatever exit code was given, unless other text is run after it.
    """
    exec("")
