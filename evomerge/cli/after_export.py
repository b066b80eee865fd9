"""What `evomerge export` does with a folder once it is whole: GGUF, then the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.cli.output import say
from evomerge.errors import ConfigError
from evomerge.export.gguf import check_type, convert
from evomerge.export.hub_push import check_push, local_models, push


@dataclass(frozen=True)
class AfterExport:
    """What else was asked for.

    Attributes:
        push_to: ORG/NAME of a model on the hub; None: none.
        private: It is to be private.
        gguf: Type of a GGUF file; None: none.
        converter: llama.cpp's converter, or its folder; None: where it usually is.
    """

    push_to: str | None = None
    private: bool = False
    gguf: str | None = None
    converter: Path | None = None

    def check(self, *, is_one_model: bool, is_full_model: bool) -> None:
        """Raise ConfigError for what cannot be, before hours go into an export."""
        if self.private and self.push_to is None:
            raise ConfigError("--private belongs to --push-to-hub")
        if self.converter is not None and self.gguf is None:
            raise ConfigError("--gguf-converter belongs to --gguf")
        if self.gguf is not None:
            check_type(self.gguf)
            if not is_full_model:
                raise ConfigError("--gguf converts full models; leave out --adapter")
        if not is_one_model and (self.gguf is not None or self.push_to is not None):
            raise ConfigError(
                "--gguf and --push-to-hub take one model; pick one, for example --pick knee"
            )
        if self.push_to is not None:
            check_push(self.push_to)

    def run(self, folder: Path, *, as_json: bool) -> dict[str, Any]:
        """Do it; return what was made, JSON-ready.

        Raises:
            RunError: The converter or the hub refused; the folder is whole.
            PreflightError: There is no converter.
        """
        made: dict[str, Any] = {}
        if self.gguf is not None:
            file = convert(folder, self.gguf, self.converter)
            made["gguf"] = str(file)
            if not as_json:
                print(f"  {file}  ({file.stat().st_size / 1e6:.1f} MB)")
        if self.push_to is not None:
            local = local_models(folder)
            if local:
                say(f"recipe.json, which is pushed, names models by path: {', '.join(local)}")
            pushed = push(folder, self.push_to, private=self.private)
            made["hub"] = {"url": pushed.url, "commit": pushed.commit}
            if not as_json:
                print(f"  pushed to {pushed.url}  (commit {pushed.commit[:12]})")
        return made
