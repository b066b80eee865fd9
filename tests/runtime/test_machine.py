"""What events.log says of a machine."""

import os
import socket

from evomerge.runtime.machine import machine_line


def test_a_machine_is_one_line_with_cpus_and_memory_and_no_names():
    line = machine_line()
    assert line.startswith("machine Linux ")
    assert f"{len(os.sched_getaffinity(0))} CPUs of " in line
    assert " GiB memory" in line
    assert "\n" not in line
    assert f" {socket.gethostname()} " not in line
