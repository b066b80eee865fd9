"""A process that drives a run is told in a way that it cannot miss."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evomerge.watch import driver
from evomerge.watch.driver import find_driver
from tests.report.synthetic import Plan, write_run


def status(pid: int, key: str) -> str:
    """Return the first word that the system says of a process under `key`."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{key}:"))


def waiting(pid: int) -> set[signal.Signals]:
    """Return the signals that a process was sent and has not taken."""
    mask = int(status(pid, "ShdPnd"), 16)
    return {number for number in signal.Signals if mask >> (number - 1) & 1}


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Have a process take no signals: as on a machine without a free core, but for sure."""
    os.kill(pid, signal.SIGSTOP)
    try:
        while status(pid, "State") != "T":
            time.sleep(0.001)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_stop_sends_the_second_signal_after_the_first_was_taken(driven):
    """Both at once may go to two threads, and Python then looks at neither for a while."""
    run, process = driven
    telling = threading.Thread(target=find_driver(run).stop, kwargs={"is_draining": False})
    with stopped(process.pid):
        telling.start()
        while not waiting(process.pid):
            assert telling.is_alive()
            time.sleep(0.001)
        time.sleep(0.2)
        assert waiting(process.pid) == {signal.SIGINT}
        assert telling.is_alive()
    telling.join()
    assert process.wait(60) == 75


ENDS_AT_ONCE = """
import signal, sys
from pathlib import Path
from evomerge.storage.run_store import RunFolder, RunStore

folder = RunFolder(Path(sys.argv[1]))
header = folder.header()
store = RunStore(folder, header=header, tasks=header["tasks"])
signal.signal(signal.SIGTERM, lambda *_: None)
try:
    print("ready", flush=True)
    signal.pause()
except KeyboardInterrupt:
    store.close()
"""


def test_stop_of_a_run_that_ends_at_the_first_signal_is_no_error(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run", Plan(n=1))
    command = [sys.executable, "-c", ENDS_AT_ONCE, folder.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        # It has ended by the time the second signal would be sent.
        monkeypatch.setattr(driver, "_until_taken", lambda *_: process.wait(60))
        find_driver(folder.path).stop(is_draining=False)
        assert process.returncode == 0


def test_stop_does_not_wait_for_ever(driven):
    run, process = driven
    with stopped(process.pid):
        find_driver(run).stop(is_draining=False)
        assert waiting(process.pid) == {signal.SIGINT, signal.SIGTERM}
    assert process.wait(60) == 75
