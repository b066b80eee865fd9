"""A real terminal: bash in tmux, typed at and looked at like by a person."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT = "$ "
WIDTH, HEIGHT = 100, 40


class Terminal:
    """A shell in a folder, where `evomerge` is the one under test."""

    def __init__(self, folder: Path, captures: Path) -> None:
        """Open it.

        Args:
            folder: Current folder of the shell.
            captures: Where panes are kept.
        """
        self._place = Path(tempfile.mkdtemp(prefix="evomerge-tmux-"))  # of its socket
        self._captures = captures
        self._n_commands = 0
        captures.mkdir(parents=True, exist_ok=True)
        for old in captures.glob("*.ansi"):
            old.unlink()
        program = Path(sys.executable).with_name("evomerge")
        path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
        settings = {
            "PATH": path,
            "PS1": PROMPT,
            "HISTFILE": "",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "LANG": "C.UTF-8",
            "EVOMERGE_CACHE": str(folder / ".cache"),
        }
        # The user's own startup files would make the capture differ from machine to machine.
        shell = [
            *(f"{key}={value}" for key, value in settings.items()),
            "bash",
            "--norc",
            "--noprofile",
        ]
        self._tmux(
            "-f", "/dev/null", "new-session", "-d", "-s", "user", "-x", str(WIDTH), "-y", str(HEIGHT),
            "-c", str(folder), "env", *shell,
        )  # fmt: skip
        self._tmux("set-option", "-g", "history-limit", "20000")
        self._wait(lambda: self.screen().rstrip("\n") == PROMPT.rstrip())

    def type(self, command: str) -> None:
        """Type a command and press Enter."""
        self._tmux("send-keys", "-t", "user", "-l", command)
        self._tmux("send-keys", "-t", "user", "Enter")
        self._n_commands += 1

    def run(self, command: str, *, name: str, seconds: float = 120) -> str:
        """Type a command, wait for the next prompt, keep the pane, and return what it printed."""
        self.type(command)
        return self.finished(name=name, seconds=seconds)

    def finished(self, *, name: str, seconds: float = 120) -> str:
        """Wait for the next prompt, keep the pane, and return what the last command printed."""
        self._wait(lambda: self._n_prompts() > self._n_commands, seconds)
        self.keep(name)
        return self.everything().split(f"\n{PROMPT}")[-2].partition("\n")[2]

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._tmux("send-keys", "-t", "user", "C-c")

    def until(self, pattern: str, seconds: float = 120) -> None:
        """Wait until the screen shows something."""
        self._wait(lambda: re.search(pattern, self.screen()) is not None, seconds)

    def screen(self) -> str:
        """What is to be seen now."""
        return self._tmux("capture-pane", "-p", "-t", "user")

    def everything(self) -> str:
        """What was ever printed, lines that the terminal broke put together, from a newline on."""
        text = self._tmux("capture-pane", "-p", "-J", "-S", "-", "-t", "user")
        return "\n" + "\n".join(
            line.rstrip() if line != PROMPT else line for line in text.split("\n")
        )

    def keep(self, name: str) -> None:
        """Write what is to be seen now into the captures, with its colours."""
        number = len(list(self._captures.glob("*.ansi"))) + 1
        pane = self._tmux("capture-pane", "-p", "-e", "-t", "user")
        self._captures.joinpath(f"{number:02d}-{name}.ansi").write_text(pane)

    def close(self) -> None:
        """End the shell and everything in it."""
        self._tmux("kill-server")
        shutil.rmtree(self._place)

    def _n_prompts(self) -> int:
        return sum(line.startswith(PROMPT.rstrip()) for line in self.everything().split("\n"))

    def _wait(self, condition, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {seconds:g} s the terminal shows:\n{self.screen()}")
            time.sleep(0.1)

    def _tmux(self, *arguments: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", str(self._place / "socket"), *arguments],
            capture_output=True, text=True, check=True, timeout=30,
            env={**os.environ, "LANG": "C.UTF-8", "TERM": "xterm-256color"},
        )  # fmt: skip
        return done.stdout


def has_tmux() -> bool:
    """Whether there is a tmux to drive."""
    return shutil.which("tmux") is not None
