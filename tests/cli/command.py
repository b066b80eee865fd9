"""The command line in this process, and a workplace with a finished run that must stay as it is."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evomerge.cli import main
from tests.e2e.tiny_run import TinyModels

# Lines that report progress; everything else on stderr counts as an error message.
PROGRESS = ("Loading weights", "Writing model shards", "resumed ")


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def messages(self) -> list[str]:
        """The lines of stderr that are not progress."""
        lines = [line for line in self.err.replace("\r", "\n").split("\n") if line.strip()]
        return [line for line in lines if not line.startswith(PROGRESS) and "in flight" not in line]


def command(capsys, *arguments) -> Finished:
    """Run the command line in this process."""
    capsys.readouterr()
    before, sys.argv = sys.argv, ["evomerge", *map(str, arguments)]
    try:
        main.run()
        code = 0
    except SystemExit as done:
        code = done.code or 0
    finally:
        sys.argv = before
    out, err = capsys.readouterr()
    return Finished(int(code), out, err)


def assert_one_line(done: Finished, code: int, says: tuple[str, ...], kind: str = "") -> None:
    """Check what every refusal has in common."""
    assert "Traceback" not in done.err, done.err
    assert done.code == code, done.err
    assert len(done.messages) == 1, done.err
    line = done.messages[0]
    assert line.startswith(kind)
    assert done.out == ""
    missing = [fragment for fragment in says if fragment not in line]
    assert not missing, f"{missing} not in: {line}"


def tree(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, str]:
    """Return relative path -> digest of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in without
    }


@dataclass
class Place:
    """A folder with copies of the tiny models, a config over them, and `populations/tiny`."""

    folder: Path
    models: TinyModels
    config: dict[str, Any]
    text: str | bytes | None = None  # instead of `config`

    @property
    def run(self) -> Path:
        return self.folder / "populations" / "tiny"

    def model(self, name: str) -> Path:
        return self.folder / "models" / name

    def weights(self, name: str) -> Path:
        return self.model(name) / "model.safetensors"

    def write(self) -> None:
        text = self.text if self.text is not None else yaml.safe_dump(self.config)
        data = text if isinstance(text, bytes) else text.encode()
        (self.folder / "c.yaml").write_bytes(data)

    def put(self, key: str, value: Any) -> None:
        """Set a dotted key of the config; items of lists are addressed by number."""
        target: Any = self.config
        *path, last = (int(part) if part.isdigit() else part for part in key.split("."))
        for part in path:
            target = target[part] if isinstance(part, int) else target.setdefault(part, {})
        target[last] = value

    def rename(self, key: str, wrong: str) -> None:
        """Misspell a dotted key."""
        target: Any = self.config
        *path, last = (int(part) if part.isdigit() else part for part in key.split("."))
        for part in path:
            target = target[part]
        target[wrong] = target.pop(last, None)


def build_place(folder: Path, models: TinyModels, finished: Path) -> Place:
    """Return a place whose config is that of the finished run, over models of its own."""
    for name in ("base", "x", "y"):
        shutil.copytree(models.folder / name, folder / "models" / name)
    shutil.copytree(finished, folder / "populations" / "tiny")
    config = models.config(budget={"evaluations": 6})
    config["base_model"] = "models/base"
    config["models"] = [{"name": name, "model": f"models/{name}"} for name in ("x", "y")]
    return Place(folder, models, config)


def read_parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return header and data section of a .safetensors file."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_parts(path: Path, header: dict[str, Any] | bytes, data: bytes) -> None:
    """Write a .safetensors file, valid or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
