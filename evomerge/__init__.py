"""evomerge: breed merges of fine-tuned models by evolutionary and black-box search.

`evomerge.search(config)` runs a search, `evomerge.Run.open(path)` opens one that exists; see
`evomerge.api`.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # By name and at first use: the command line must not wait for torch, and no layer below
    # may come to depend on the one on top.
    if name == "Run":
        return import_module("evomerge.api").Run
    if name == "search":
        return import_module("evomerge.search")
    raise AttributeError(f"module 'evomerge' has no attribute {name!r}")
