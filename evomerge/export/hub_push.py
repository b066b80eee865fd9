"""Publish an exported folder as a model of the Hugging Face hub."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from evomerge.errors import ConfigError, RunError, first_line, without_secrets


@dataclass(frozen=True)
class Pushed:
    """A commit on the hub: the model's page, and the commit's id."""

    url: str
    commit: str


def check_push(repo_id: str) -> None:
    """Raise ConfigError for what can be known to fail before anything is exported."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
        is_full = "/" in repo_id
    except HFValidationError:
        is_full = False
    if not is_full:
        raise ConfigError(f"--push-to-hub is {repo_id!r}, expected ORG/NAME of a model of the hub")

    if constants.HF_HUB_OFFLINE:
        raise ConfigError("--push-to-hub: HF_HUB_OFFLINE is set; unset it, or leave the push out")
    if get_token() is None:
        raise ConfigError(
            "--push-to-hub needs a token with write access: `hf auth login`, or set HF_TOKEN"
        )


def push(folder: Path, repo_id: str, *, private: bool) -> Pushed:
    """Create the model on the hub if there is none, and commit a folder to it.

    The token is that of HF_TOKEN or `hf auth login`.

    Args:
        folder: An export; it is only read.
        repo_id: ORG/NAME.
        private: Make a private model, and refuse one that is public already.

    Raises:
        RunError: The hub refused, or could not be reached; says how to push the folder again.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    hub = HfApi(library_name="evomerge")
    were_shown = not are_progress_bars_disabled()
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        hub.create_repo(repo_id, private=private or None, exist_ok=True)
        is_public = private and not hub.model_info(repo_id).private
        if not is_public:
            done = hub.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=f"Add {folder.resolve().name}, a merge by evomerge",
            )
    except Exception as error:  # whatever the client and its HTTP stack raise
        causes = [error] if error.__cause__ is None else [error, error.__cause__]
        parts = [f"{type(item).__name__}: {first_line(item).rstrip('.')}" for item in causes]
        why = ": ".join(dict.fromkeys(parts))  # an HTTP client's error repeats that below it
        raise RunError(
            f"{folder} is whole, but was not pushed to {repo_id}: {without_secrets(why)}. Check "
            f"the network and that the token may write there, then: hf upload {repo_id} {folder}"
        ) from error
    finally:
        if were_shown:
            enable_progress_bars()
    if is_public:
        raise RunError(
            f"{folder} is whole, but was not pushed: {repo_id} is public and --private was asked "
            "for. Make it private on its settings page, or give another name"
        )
    return Pushed(f"{hub.endpoint}/{repo_id}", done.oid)


def local_models(folder: Path) -> list[str]:
    """Return the paths on this machine that recipe.json of an export names; [] without one."""
    file = folder / "recipe.json"
    if not file.is_file():
        return []
    body = json.loads(file.read_bytes())
    named = [source.get(key) for source in body["sources"] for key in ("model", "lora")]
    return [name for name in named if name is not None and Path(name).is_absolute()]
