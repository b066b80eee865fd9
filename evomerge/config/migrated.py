"""What a conversion gives: a config, and what could not be carried over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge.config.config_text import config_text
from evomerge.config.schema import ModelConfig
from evomerge.config.starter import check_text, placed


@dataclass
class Migrated:
    """A config that grows key by key, with remarks on what is different from the original.

    Attributes:
        file: The original.
        body: The config.
        remarks: Key of `body` -> remarks on it; under "" those that belong to none.
    """

    file: Path
    body: dict[str, Any] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)

    def remark(self, key: str, text: str) -> None:
        """Note that something is not as it was."""
        self.remarks.setdefault(key, []).append(text)

    @property
    def all_remarks(self) -> tuple[str, ...]:
        """Every remark, in the order of the config's keys."""
        keys = ["", *self.body, *(key for key in self.remarks if key not in self.body)]
        return tuple(text for key in dict.fromkeys(keys) for text in self.remarks.get(key, ()))

    def text(self, folder: Path, tool: str) -> str:
        """Return the YAML text; remarks stand above their keys.

        Raises:
            ConfigError: The original asks for something evomerge refuses.
        """
        head = [
            f"Converted from {tool}'s {self.file.name}. What could not be carried over stands in "
            "the comments below.",
            *self.remarks.get("", ()),
        ]
        notes = {key: texts for key, texts in self.remarks.items() if key in self.body}
        text = config_text(self.body, head, notes)
        check_text(text, folder)
        return text


def model_section(model: ModelConfig, folder: Path) -> dict[str, Any]:
    """Return a model as a config in `folder` spells it."""
    body = {"model": placed(model.model, folder)}
    if model.revision is not None:
        body["revision"] = model.revision
    if model.lora is not None:
        body["lora"] = placed(model.lora, folder)
    return body


def take(body: Mapping[str, Any], done: set[str], key: str, default: Any = None) -> Any:
    """Return a value and note that its key was looked at."""
    done.add(key)
    value = body.get(key)
    return default if value is None else value
