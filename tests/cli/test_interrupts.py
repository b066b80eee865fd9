"""A Ctrl-C that lands where nothing can be raised is not lost."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import signal, sys, time
from evomerge.cli.interrupts import keep_interrupts

class Unlucky:
    def __del__(self):
        {happens}

if {kept}:
    keep_interrupts()
try:
    Unlucky()
    time.sleep(3)
except KeyboardInterrupt:
    print("interrupted")
else:
    print("nothing")
"""
PRESSED = "signal.raise_signal(signal.SIGINT)"


def run(happens: str, *, kept: bool) -> tuple[str, str]:
    program = PROGRAM.format(happens=happens, kept=kept)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    return done.stdout.strip(), done.stderr


def test_ctrl_c_in_a_finalizer_comes_again() -> None:
    assert run(PRESSED, kept=True) == ("interrupted", "")


def test_python_alone_would_lose_it() -> None:
    out, err = run(PRESSED, kept=False)
    assert out == "nothing"
    assert "Exception ignored" in err


def test_other_errors_there_are_still_told() -> None:
    out, err = run("raise ValueError('oh')", kept=True)
    assert out == "nothing"
    assert "ValueError: oh" in err


def test_a_run_of_the_command_line_keeps_them(
    evomerge, place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    assert evomerge("status", "tiny").code == 0
    hook = sys.unraisablehook
    assert hook is not sys.__unraisablehook__
    assert evomerge("status", "tiny").code == 0
    assert sys.unraisablehook is hook
