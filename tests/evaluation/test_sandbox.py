"""Programs that try to get out, run for ever or eat the machine; they are really run."""

import os
import socket
import threading
from pathlib import Path

import pytest

from evomerge.errors import ExecutorError
from evomerge.evaluation import sandbox
from evomerge.evaluation.sandbox import Limits, run_python

FAST = Limits(seconds=20.0)


def why_not() -> str | None:
    try:
        run_python("pass", Limits(seconds=60))
    except ExecutorError as error:
        return str(error)
    return None


BARRIER = why_not()
isolated = pytest.mark.skipif(BARRIER is not None, reason=str(BARRIER))
BOTH = pytest.mark.parametrize("isolation", [pytest.param("namespaces", marks=isolated), "none"])


def verdict(program, limits=FAST, isolation="namespaces"):
    ran = run_python(program, limits, isolation=isolation)
    assert ran.verdict in ("passed", "failed", "timeout")
    return ran.verdict


@BOTH
def test_a_program_passes_only_if_it_reaches_its_end(isolation):
    assert verdict("import json\nassert json.loads('1') == 1", isolation=isolation) == "passed"
    for program in (
        "assert 1 == 2",
        "raise SystemExit(0)",
        "import os\nos._exit(0)",
        "def broken(:",
        "print('\\n0123456789abcdef0123456789abcdef')\nraise SystemExit(0)",
    ):
        assert verdict(program, isolation=isolation) == "failed", program


@BOTH
def test_what_a_program_says_is_kept_for_people(isolation):
    ran = run_python("print('one')\nraise ValueError('two')", FAST, isolation=isolation)
    assert "one" in ran.output
    assert "ValueError: two" in ran.output


@BOTH
def test_an_endless_loop_is_ended(isolation):
    limits = Limits(seconds=0.5)
    assert verdict("while True: pass", limits, isolation) == "timeout"
    assert verdict("import time\ntime.sleep(1000)", limits, isolation) == "timeout"
    assert verdict("while True: print('x' * 10**6)", Limits(seconds=20.0), isolation) == "failed"


@BOTH
def test_memory_is_bounded(isolation):
    assert verdict("x = bytearray(2 * 2**30)", isolation=isolation) == "failed"
    assert verdict("x = bytearray(50 * 2**20)", isolation=isolation) == "passed"


@isolated
def test_a_fork_bomb_is_bounded_and_dies_with_its_program():
    program = """
import os, time
n = 0
try:
    while n < 200:
        if os.fork() == 0:
            os.setsid()   # out of the process group
            time.sleep(1000)
        n += 1
except OSError:
    assert n < 16, n
else:
    raise AssertionError("nothing stopped it")
"""
    before = n_processes()
    assert verdict(program) == "passed"
    assert n_processes() <= before + 2


def n_processes() -> int:
    """Return how many processes of sandboxes there are: those with our bootstrap."""
    count = 0
    for entry in Path("/proc").iterdir():
        try:
            count += entry.name.isdecimal() and b"RLIMIT" in (entry / "cmdline").read_bytes()
            count += entry.name.isdecimal() and b"os.setsid" in (entry / "cmdline").read_bytes()
        except OSError:
            continue
    return count


def test_without_isolation_children_die_with_the_group(tmp_path):
    program = f"""
import os, time
if os.fork() == 0:
    time.sleep(1)
    open({str(tmp_path / "late")!r}, "w").close()
    os._exit(0)
"""
    limits = Limits(seconds=20.0, processes=100_000)
    assert verdict(program, limits, "none") == "passed"
    with pytest.raises(TimeoutError):
        wait_for(tmp_path / "late")


def wait_for(path: Path) -> None:
    event = threading.Event()
    for _ in range(15):
        if path.exists():
            return
        event.wait(0.1)
    raise TimeoutError


@isolated
def test_there_is_no_network():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        program = f"""
import socket
try:
    socket.create_connection(("127.0.0.1", {port}), timeout=5)
except OSError:
    pass
else:
    raise AssertionError("connected")
names = [name for _, name in socket.if_nameindex()]
assert names == ["lo"], names
"""
        assert verdict(program) == "passed"


@isolated
def test_no_file_of_the_host_is_read_or_written(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("hush")
    os.chmod(secret, 0o644)
    (home := Path.home() / ".evomerge-sandbox-test").unlink(missing_ok=True)
    program = f"""
import os
open("/tmp/own", "w").write("fine")
assert open("own").read() == "fine"
for path in ({str(secret)!r}, "/etc/passwd", "/sys", "/dev/sda"):
    assert not os.path.exists(path), path
for path in ({str(home)!r}, "/usr/lib/evomerge-test", {str(tmp_path / "new")!r}, "/dev/shm/x"):
    try:
        open(path, "w")
    except OSError:
        pass
    else:
        raise AssertionError(path)
"""
    ran = run_python(program, FAST)
    assert ran.verdict == "passed", ran.output
    assert not home.exists()
    assert not (tmp_path / "new").exists()


@isolated
def test_its_disk_is_bounded():
    program = """
for n in range(100):
    try:
        open(f"/tmp/{n}", "wb").write(bytes(4 * 2**20))
    except OSError:
        assert n < 5, n
        break
else:
    raise AssertionError("unbounded")
"""
    ran = run_python(program, FAST)
    assert ran.verdict == "passed", ran.output


@BOTH
def test_secrets_of_the_environment_are_not_there(isolation, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    program = """
import os
assert set(os.environ) <= {"PATH", "LANG", "HOME", "PWD", "SHLVL", "_", "OLDPWD", "LC_CTYPE"}, os.environ
assert "sk-secret" not in open("/proc/self/environ").read()
"""
    ran = run_python(program, FAST, isolation=isolation)
    assert ran.verdict == "passed", ran.output


@isolated
def test_other_processes_are_not_seen_and_no_right_is_left():
    program = """
import os
assert [p for p in os.listdir("/proc") if p.isdecimal()] == ["1"], os.listdir("/proc")
status = open("/proc/self/status").read()
for kind in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
    assert f"{kind}:\\t0000000000000000" in status, status
assert "NoNewPrivs:\\t1" in status
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x10000000) == -1   # CLONE_NEWUSER
assert libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == -1
try:
    os.chroot("/tmp")
except PermissionError:
    pass
else:
    raise AssertionError("chroot")
"""
    ran = run_python(program, FAST)
    assert ran.verdict == "passed", ran.output


def test_a_machine_without_namespaces_is_refused_with_a_way_out(monkeypatch, tmp_path):
    for tool in sandbox._TOOLS:
        (tmp_path / tool).write_text("#!/bin/sh\necho Operation not permitted >&2\nexit 1\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setattr(sandbox, "_PATH", f"{tmp_path}:{sandbox._PATH}")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ExecutorError, match=r"Operation not permitted.*isolation: none"):
        run_python("pass", FAST)
    monkeypatch.setattr(sandbox, "_PATH", str(tmp_path / "empty"))
    with pytest.raises(ExecutorError, match="unshare is not installed"):
        run_python("pass", FAST)
    assert verdict("pass", isolation="none") == "passed"
