"""Convert an exported folder to GGUF with llama.cpp's own converter, where it is at hand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from evomerge.errors import ConfigError, PreflightError, RunError, without_secrets

CONVERTER = "convert_hf_to_gguf.py"
VARIABLE = "LLAMA_CPP"
TYPES = ("auto", "f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0")


def check_type(name: str) -> None:
    """Raise ConfigError unless the converter writes this type."""
    if name not in TYPES:
        raise ConfigError(
            f"--gguf is {name!r}, expected one of {', '.join(TYPES)}; other quantisations are made "
            "of such a file by llama.cpp's llama-quantize"
        )


def find_converter(given: Path | None) -> Path:
    """Return llama.cpp's converter.

    Args:
        given: The script or a folder with it; None: $LLAMA_CPP, then PATH.

    Raises:
        PreflightError: There is none; says how to get it.
    """
    if given is None and os.environ.get(VARIABLE):
        given = Path(os.environ[VARIABLE])
    if given is not None:
        script = given / CONVERTER if given.is_dir() else given
        if script.is_file():
            return script
        raise PreflightError(f"{script}: there is no such GGUF converter. {_HOW_TO_GET}")
    found = shutil.which(CONVERTER)
    if found is None:
        raise PreflightError(f"{CONVERTER} of llama.cpp is not on PATH. {_HOW_TO_GET}")
    return Path(found)


_HOW_TO_GET = (
    "Get it by `git clone https://github.com/ggml-org/llama.cpp` and "
    "`pip install gguf sentencepiece`, then give "
    f"--gguf-converter llama.cpp/{CONVERTER}, or set {VARIABLE} to that folder"
)


def convert(folder: Path, kind: str, converter: Path | None) -> Path:
    """Return the GGUF file that was made of an exported model, inside its folder.

    Args:
        folder: The export.
        kind: One of `TYPES`; "auto" keeps 16-bit weights as they are.
        converter: See `find_converter`.

    Raises:
        PreflightError: There is no converter.
        RunError: The converter failed, as it does for architectures it does not know.
    """
    try:
        script = find_converter(converter)
    except PreflightError as error:
        raise PreflightError(f"{folder} is whole, but there is no GGUF file: {error}") from None
    file = folder / f"model-{kind}.gguf"
    partial = folder / f".{file.name}.partial"
    # Python of this process: it has torch and transformers, which the script imports.
    run_with = [sys.executable] if script.suffix == ".py" else []
    command = [*run_with, str(script), str(folder), "--outfile", str(partial), "--outtype", kind]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode == 0 and partial.is_file():
            partial.replace(file)
            return file
    except OSError as error:
        raise RunError(f"{folder} is whole, but {script} cannot be run: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
    said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
    raise RunError(
        f"{folder} is whole, but {script} failed with exit code {done.returncode}: "
        f"{without_secrets(said).rstrip('.')}. See all it says: {' '.join(command)}"
    )
