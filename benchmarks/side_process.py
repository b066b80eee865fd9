"""A process that merges from disk to disk, hot, and what each merge costs it (Linux).

The child answers one JSON line per job; the parent reads its CPU seconds and memory from /proc.
Only the standard library is imported, so that another interpreter can run the child.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Job = dict[str, Any]
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class SideRun:
    """One job.

    Attributes:
        cpu_seconds: Of all threads, in user mode and in the kernel.
        wall_seconds: On the clock.
        peak_rss_mb: Most memory resident, pages of mapped files included.
        peak_anonymous_mb: Most memory of its own resident, sampled every 5 ms.
        is_cut_off: The job was ended at the limit: the seconds are lower bounds.
        facts: What the job returned.
    """

    cpu_seconds: float
    wall_seconds: float
    peak_rss_mb: float
    peak_anonymous_mb: float
    is_cut_off: bool = False
    facts: Job = field(default_factory=dict)


class Side:
    """The parent's end; starts the child on first use and after a job was cut off."""

    def __init__(self, python: str, module: str, *, threads: int = 1) -> None:
        """Args: python: interpreter; module: one that calls `serve`; threads: of the child."""
        self._command = [python, "-m", module]
        self._threads = threads
        self._child: subprocess.Popen[str] | None = None

    def run(self, job: Job, *, cpu_limit: float = float("inf")) -> SideRun:
        """Return the cost of one job.

        Args:
            job: What the child's function takes; JSON.
            cpu_limit: CPU seconds after which the child is ended.

        Raises:
            RuntimeError: The job failed; the child's message is on stderr.
        """
        self.start()
        child = self._child
        assert child is not None
        stdin, stdout = child.stdin, child.stdout
        assert stdin is not None
        assert stdout is not None
        Path(f"/proc/{child.pid}/clear_refs").write_text("5")  # the peak begins anew
        before, started, anonymous = _cpu_seconds(child.pid), time.perf_counter(), 0
        answer: list[str] = []
        stdin.write(json.dumps(job) + "\n")
        stdin.flush()
        reader = threading.Thread(target=lambda: answer.append(stdout.readline()))
        reader.start()
        while reader.is_alive():
            anonymous = max(anonymous, _anonymous_bytes(child.pid))
            spent = _cpu_seconds(child.pid) - before
            if spent > cpu_limit:
                peak = _peak_bytes(child.pid)
                child.kill()
                reader.join()
                self.close()
                wall = time.perf_counter() - started
                return SideRun(spent, wall, peak / 1e6, anonymous / 1e6, is_cut_off=True)
            reader.join(0.005)
        wall = time.perf_counter() - started
        if not answer[0]:
            self.close()
            raise RuntimeError(f"{' '.join(self._command)} failed at {job}")
        facts = json.loads(answer[0])
        peak = _peak_bytes(child.pid)
        return SideRun(facts.pop("cpu_seconds"), wall, peak / 1e6, anonymous / 1e6, facts=facts)

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            with self._child:  # closes the pipes and waits
                self._child = None

    def start(self) -> int:
        """Start the child if it is not there, wait for its imports, and return its process id."""
        if self._child is None:
            threads = {"OMP_NUM_THREADS": str(self._threads), "OMP_WAIT_POLICY": "PASSIVE"}
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **threads, "HF_HUB_OFFLINE": "1"},
                cwd=Path(__file__).parents[1],
            )
            assert self._child.stdout is not None
            self._child.stdout.readline()  # imports are done
        return self._child.pid


def serve(work: Callable[[Job], Job]) -> None:
    """Answer jobs from stdin with what `work` returns and its CPU seconds, until it closes."""
    # Libraries may print; the answers keep the pipe to themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        before = time.process_time()
        facts = work(json.loads(line))
        spent = time.process_time() - before
        print(json.dumps({**facts, "cpu_seconds": spent}), file=answers, flush=True)


def drop_from_page_cache(folder: Path) -> None:
    """Make the next read of every file under `folder` come from the disk.

    Pages that some process has mapped stay; the files must not be open elsewhere.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)


def read_into_page_cache(folder: Path) -> None:
    """Read every file under `folder`, so that merging need not touch the disk."""
    buffer = bytearray(1 << 22)
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def cached_share(folder: Path) -> float:
    """Return which part of the files under `folder` is in the page cache, from 64 samples each."""
    n_cached = n_asked = 0
    for path in folder.rglob("*.safetensors"):
        handle = os.open(path, os.O_RDONLY)
        try:
            for sample in range(64):
                n_asked += 1
                try:
                    place = path.stat().st_size * sample // 64
                    os.preadv(handle, [bytearray(1)], place, os.RWF_NOWAIT)
                    n_cached += 1
                except BlockingIOError:
                    continue  # it would have to be read from the disk
        finally:
            os.close(handle)
    return n_cached / max(n_asked, 1)


def _cpu_seconds(pid: int) -> float:
    # The second field, the program's name in parentheses, may hold spaces.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def _anonymous_bytes(pid: int) -> int:
    _, resident, of_files, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    return (int(resident) - int(of_files)) * _PAGE


def _peak_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0  # the process has ended
