"""resolve_model: a model's reference in a config -> a folder or file on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from evomerge.errors import SourceError, nearest
from evomerge.storage.named_path import named_path

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ALLOWED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*")
# Subfolders hold other formats, and `consolidated` the same weights once more.
_IGNORED = ("*/*", "consolidated*")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long for a path, or not ours to look at
        return False


def _nearest_neighbour(path: Path) -> str:
    """Return " Did you mean '…'?" for the entry beside `path` that is most like it."""
    try:
        return nearest(path.name, [entry.name for entry in path.parent.iterdir()])
    except (OSError, ValueError):  # ValueError: of a name that no system can have
        return ""


def resolve_model(ref: str, revision: str | None, base_dir: Path) -> Path:
    """Return the local path of a model, downloading it from the Hugging Face hub if needed.

    Args:
        ref: A path, absolute or relative to `base_dir`, or a hub id `org/name`.
        revision: Branch, tag or commit of a hub model; None means its default branch.
        base_dir: Folder of the config that names the model.

    Returns:
        The path, or the hub cache's snapshot folder. Only safetensors, JSON and tokenizer
        files are downloaded; HF_HUB_OFFLINE=1 keeps to the cache.

    Raises:
        SourceError: There is no such path, and it is no hub id or cannot be had; or a
            revision is given for a local path other than a hub cache's snapshot.
        ConfigError: No machine can have such a path.
    """
    path = base_dir / named_path(ref)
    if ref and _exists(path):
        # The path of a snapshot may come from an earlier call, revision and all.
        is_snapshot = path.parent.name == "snapshots" and path.parents[1].name[:8] == "models--"
        if revision is not None and not is_snapshot:
            raise SourceError(
                f"{ref}: revision {revision!r} is given, but {path} is a local path. "
                "Remove `revision:`, or rename the folder if you mean the hub model."
            )
        return path
    if not _HUB_ID.fullmatch(ref) or ".." in ref:
        raise SourceError(
            f"{ref!r:.300}: there is no {path!s:.300}, and it is not a hub id like 'org/name'."
            f"{_nearest_neighbour(path)} Correct the path; relative ones start at {base_dir}."
        )
    return _downloaded(ref, revision, path, _nearest_neighbour(path))


def on_this_machine(path: Path) -> Path:
    """Return a model's path, or where this machine has the same commit of a hub model.

    A run records where the hub cache of its first machine has a model. Elsewhere that cache may
    be another one: the commit is then taken from there, downloaded once if needed.

    Raises:
        SourceError: It is not there, and cannot be downloaded.
    """
    repository = path.parents[1].name if len(path.parents) > 1 else ""
    is_snapshot = path.parent.name == "snapshots" and _COMMIT.fullmatch(path.name) is not None
    ref = repository.removeprefix("models--").replace("--", "/", 1)
    if _exists(path) or not is_snapshot or not _HUB_ID.fullmatch(ref) or ref == repository:
        return path
    return _downloaded(ref, path.name, path)


def _downloaded(ref: str, revision: str | None, path: Path, hint: str = "") -> Path:
    """Return the hub cache's snapshot of a model; `path` is where it was not found."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise SourceError(
            f"{ref}: there is no {path}, and huggingface_hub is not installed. "
            "Install it, or download the model and give its folder."
        ) from None
    try:
        snapshot = snapshot_download(
            ref, revision=revision, allow_patterns=list(_ALLOWED), ignore_patterns=list(_IGNORED)
        )
    except Exception as error:  # whatever its HTTP stack raises, the model cannot be had
        raise SourceError(
            f"{ref}: there is no {path}, and the hub model (revision {revision or 'default'}) "
            f"cannot be had: {type(error).__name__}: {error}{hint} "
            "Check the name and the network "
            "(HF_HUB_OFFLINE, HF_TOKEN), or download it and give its folder."
        ) from error
    return Path(snapshot)
