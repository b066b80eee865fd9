"""Stage a model in a process of its own: `python -m tests.runtime.staging_process ROOT MODEL BYTES`.

Prints "copied"/"found" and the path, then holds on to it until stdin closes. With SLOW set, every
chunk takes that many seconds.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from evomerge.errors import SourceError
from evomerge.runtime import staging

if "SLOW" in os.environ:
    staging._CHUNK = 1 << 16
    hasher = staging.xxhash.xxh3_128

    class Slow:
        """A checksum that takes its time."""

        def __init__(self) -> None:
            self.inner = hasher()

        def update(self, chunk: bytes) -> None:
            time.sleep(float(os.environ["SLOW"]))
            self.inner.update(chunk)

        def hexdigest(self) -> str:
            return self.inner.hexdigest()

    staging.xxhash.xxh3_128 = Slow

copies: list[str] = []
real = staging._copied


def counted(source: Path, target: Path) -> str:
    copies.append(source.name)
    return real(source, target)


staging._copied = counted

if __name__ == "__main__":
    root, model, most = sys.argv[1:]
    print("started", flush=True)
    place = staging.Staging(Path(root), int(most) or None)
    try:
        staged = place.stage(Path(model), ["d"])
        print("copied" if copies else "found", staged.path, staged.note, flush=True)
    except SourceError as error:
        print("refused", error, flush=True)
    sys.stdin.read()
