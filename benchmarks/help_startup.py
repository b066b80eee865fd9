"""Time of `evomerge --help` in a fresh process.

python benchmarks/help_startup.py [--repeats 15]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    wall, cpu = [], []
    command = [sys.executable, "-m", "evomerge", "--help"]
    bare_wall = []
    for repeat in range(args.repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", ""], check=True)
        bare_wall.append(time.perf_counter() - started)
        print(f"{repeat + 1}: {wall[-1]:.3f} s wall, {cpu[-1]:.3f} s CPU", file=sys.stderr)
    figures = {
        "help_wall_s_median": round(statistics.median(wall), 4),
        "help_wall_s_max": round(max(wall), 4),
        "help_cpu_s_median": round(statistics.median(cpu), 4),
        "over_bare_python": round(statistics.median(wall) / statistics.median(bare_wall), 2),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
