"""Runs a Python program nobody trusts: no network, no files of the host, bounded in every way.

Linux namespaces through util-linux (`unshare`, `mount`, `setpriv`): the program sees an empty
in-memory root with the system's libraries read-only, no network interface, no other process and
no capability. Killing the first process of its PID namespace kills all of them. What is left is
the kernel itself: for code that may be hostile on purpose, run the workers in virtual machines.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evomerge.errors import UnavailableError

Isolation = Literal["namespaces", "none"]
Verdict = Literal["passed", "failed", "timeout"]

MB = 2**20
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_SHOWN_BYTES = 2000
_START_SECONDS = 60.0
_REMEDY = (
    "Permit user namespaces (sysctl user.max_user_namespaces; in a container, a seccomp profile "
    "with unshare and mount), or, where only trusted programs are run, set `isolation: none`"
)
_TOOLS = ("unshare", "mount", "setpriv", "chroot", "sh")
_LINKS = ("/bin", "/lib", "/lib32", "/lib64", "/sbin")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")

# Arguments: new root, size of its file system in bytes, then folders to show read-only.
_BUILD_ROOT = """
set -e
root=$1; shift; size=$1; shift; links=$1; shift; devices=$1; shift
mount -t tmpfs -o "size=$size,mode=755,nosuid,nodev" tmpfs "$root"
mkdir -p "$root/tmp" "$root/proc" "$root/dev"
chmod 1777 "$root/tmp"
while [ "$1" != "--" ]; do
  mkdir -p "$root$1"
  mount --bind "$1" "$root$1"
  mount -o remount,bind,ro,nosuid,nodev "$root$1"
  shift
done
shift
for link in $links; do
  if [ -L "$link" ]; then cp -P "$link" "$root$link"; fi
done
for device in $devices; do : > "$root$device"; mount --bind "$device" "$root$device"; done
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
exec chroot "$root" "$@"
"""

# The first lines of the program's own process: limits; a word on stderr that says the sandbox
# stands, which the program cannot reach afterwards; the program; the word again, on stdout, which
# says that its end was reached. stdin: word, limits, program.
_RUN = """
import os, resource, sys
word, limits, source = sys.stdin.read().split("\\n", 2)
for name, value in (pair.split("=") for pair in limits.split()):
    kind = getattr(resource, name)
    most = resource.getrlimit(kind)[1]
    value = int(value) if most == resource.RLIM_INFINITY else min(int(value), most)
    resource.setrlimit(kind, (value, value))
os.chdir("/tmp" if len(sys.argv) < 2 else sys.argv[1])
os.write(2, word.encode())
os.dup2(1, 2)
scope = {"__name__": "__main__"}
exec(compile(source, "program", "exec"), scope)
sys.stdout.flush()
os.write(1, ("\\n" + word).encode())
os._exit(0)
"""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: Wall time, and CPU time per process.
        memory_mb: Address space of each process.
        file_mb: All files together, in memory; also the largest file and the longest output.
        processes: Processes and threads.
        open_files: Open files per process.
    """

    seconds: float = 10.0
    memory_mb: int = 512
    file_mb: int = 16
    processes: int = 16
    open_files: int = 64


@dataclass(frozen=True)
class Ran:
    """How a program ended.

    Attributes:
        verdict: "passed" only if it ran to its end.
        output: The end of what it wrote, errors included, for people.
    """

    verdict: Verdict
    output: str


def run_python(program: str, limits: Limits, *, isolation: Isolation = "namespaces") -> Ran:
    """Run a program (standard library only) to its end, its failure, or its time limit.

    Args:
        program: Python source.
        limits: What it may use.
        isolation: "namespaces", or "none": then it has the network and the files of this user,
            and only limits, time, environment and working folder are kept.

    Raises:
        UnavailableError: The machine does not permit namespaces.
    """
    if isolation == "namespaces":
        _require_tools()
    word = secrets.token_hex(16)
    bounds = {
        "RLIMIT_CPU": max(1, int(limits.seconds) + 1),
        "RLIMIT_AS": limits.memory_mb * MB,
        "RLIMIT_FSIZE": limits.file_mb * MB,
        "RLIMIT_NPROC": limits.processes,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_CORE": 0,
    }
    settings = " ".join(f"{name}={value}" for name, value in bounds.items())
    with tempfile.TemporaryDirectory(prefix="evomerge-sandbox-") as folder:
        output, started = Path(folder, "output"), Path(folder, "started")
        (work := Path(folder, "work")).mkdir()
        given = f"{word}\n{settings}\n{program}".encode("utf-8", "surrogatepass")
        (source := Path(folder, "source")).write_bytes(given)
        with source.open("rb") as stdin, output.open("wb") as out, started.open("wb") as err:
            process = subprocess.Popen(
                _command(work, limits, isolation),
                stdin=stdin,
                stdout=out,
                stderr=err,
                cwd=folder,
                env={"PATH": _PATH, "LANG": "C.UTF-8", "HOME": "/tmp"},
                start_new_session=True,
                close_fds=True,
            )
            is_late = False
            try:
                _await_start(process, started, len(word))
                code = process.wait(limits.seconds)
            except subprocess.TimeoutExpired:
                is_late, code = True, -signal.SIGKILL
            finally:
                _kill(process)
        with output.open("rb") as file:
            file.seek(max(0, output.stat().st_size - _SHOWN_BYTES))
            end = file.read().decode("utf-8", "replace")
        begin = started.read_bytes()[:_SHOWN_BYTES].decode("utf-8", "replace")
    if begin != word:
        raise UnavailableError(
            f"programs cannot be isolated: {' '.join(begin.split()) or 'no start in time'}. "
            f"{_REMEDY}"
        )
    said = end.removesuffix(f"\n{word}")
    if is_late:
        return Ran("timeout", said)
    has_ended = code == 0 and end.endswith(f"\n{word}")
    return Ran("passed" if has_ended else "failed", said)


def _await_start(process: subprocess.Popen[bytes], started: Path, size: int) -> None:
    """Wait until the program begins: its time does not count the building of its sandbox."""
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and started.stat().st_size < size and time.monotonic() < deadline:
        time.sleep(0.002)


def _require_tools() -> None:
    missing = [tool for tool in _TOOLS if shutil.which(tool, path=_PATH) is None]
    if sys.platform != "linux" or missing:
        what = f"{missing[0]} is not installed" if missing else "this is not Linux"
        raise UnavailableError(f"programs cannot be isolated: {what}. {_REMEDY}")


def _command(work: Path, limits: Limits, isolation: Isolation) -> list[str]:
    """Return the command that runs `_RUN` inside."""
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    run = [python, "-I", "-S", "-B", "-c", _RUN]
    if isolation == "none":
        return [*run, str(work)]
    is_root = os.geteuid() == 0
    # Root makes the mounts as itself and becomes nobody in particular afterwards: the limit on
    # processes does not hold for root, even in a user namespace.
    as_user = [] if is_root else ["--user", "--map-root-user"]
    number = str(50_000 + threading.get_native_id() % 10_000)
    become = [f"--reuid={number}", f"--regid={number}", "--clear-groups"] if is_root else []
    prefix = os.path.realpath(sys.base_prefix)
    shown = ["/usr", *([] if prefix.startswith("/usr/") or prefix == "/usr" else [prefix])]
    shown += [link for link in _LINKS if os.path.isdir(link) and not os.path.islink(link)]
    return [
        *("unshare", *as_user, "--net", "--pid", "--fork", "--kill-child", "--mount"),
        *("--ipc", "--uts"),
        *("sh", "-c", _BUILD_ROOT, "sh", str(work), str(limits.file_mb * MB)),
        *(" ".join(_LINKS), " ".join(_DEVICES)),
        *(*shown, "--"),
        *("setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", *become),
        *run,
    ]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the whole group; with namespaces `--kill-child` ends what has left the group, too."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it has ended, and so has its group
    process.wait()
