"""A Ctrl-C that lands where nothing can be raised is not lost."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

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


THROUGH_TEXT = """
from evomerge.cli import main

def app(*_, **__):
    try:
        exec("raise KeyboardInterrupt")  # as in the middle of making a named tuple
    except KeyboardInterrupt:
        raise SystemExit(75) from None

main.app = app
{call}
"""


@pytest.mark.parametrize(("call", "code"), [("main.run()", 75), ("app()", -signal.SIGINT)])
def test_the_exit_code_outlives_an_interrupt_in_text_that_was_run(
    call: str, code: int, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(THROUGH_TEXT.format(call=call))
    done = subprocess.run([sys.executable, "-m", "program"], cwd=tmp_path, timeout=60)
    assert done.returncode == code, "Python alone dies of SIGINT"


def test_a_run_of_the_command_line_keeps_them(
    evomerge, place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    assert evomerge("status", "tiny").code == 0
    hook = sys.unraisablehook
    assert hook is not sys.__unraisablehook__
    assert evomerge("status", "tiny").code == 0
    assert sys.unraisablehook is hook
