"""The ask / tell loop, its replay and its ports (`Executor`, `RunLog`). NumPy only.

Called, `evomerge.search(config)` is `evomerge.api.search`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    # The package and the function of the Python API share a name, and importing any module of
    # the package puts it where a function would be. So the package itself can be called.
    def __call__(
        self,
        config: Any,
        *,
        run: Path | str | None = None,
        overrides: Mapping[str, Any] | Sequence[str] = (),
        warm_start: Path | str | None = None,
    ) -> Any:
        """Run a search; see `evomerge.api.search`."""
        api = import_module("evomerge.api")
        return api.search(config, run=run, overrides=overrides, warm_start=warm_start)


sys.modules[__name__].__class__ = _CallableModule
