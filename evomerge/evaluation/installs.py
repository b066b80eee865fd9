"""Ways to get a candidate onto a server: a recipe it merges itself, or a LoRA adapter."""

from __future__ import annotations

import re
import shutil
import uuid
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evomerge.core.recipe import Recipe
from evomerge.errors import EvaluationError, UnavailableError
from evomerge.evaluation.http_client import Client, GarbageError
from evomerge.evaluation.served_subject import Installed

VERSION_PATH = "/evomerge/v1/version"
INSTALL_PATH = "/evomerge/v1/install"
PROTOCOL = 1


class RecipeInstall:
    """Sends recipes to a server that holds the sources: the contract of docs/endpoint.md."""

    def __init__(self, client: Client, sources: Mapping[str, str]) -> None:
        """Args: client: The connection; sources: source id -> digest of its weights here."""
        self._client = client
        self._sources = dict(sources)
        self._is_checked = False

    def __call__(self, recipe: Recipe) -> Installed:
        """Install a recipe; see `Install`."""
        if not self._is_checked:
            self._client.ask("GET", VERSION_PATH, None, self._check)
            self._is_checked = True
        wanted = recipe.digest()
        installed = self._client.ask("POST", INSTALL_PATH, {"recipe": recipe.to_json()}, _installed)
        held = self._client.ask("GET", VERSION_PATH, None, _version)
        if held != installed.version or not installed.version.endswith(wanted):
            raise UnavailableError(
                f"the server holds version {held!r} after {installed.version!r} was installed for "
                f"recipe {wanted}; does another run install on it? Give each worker its own server"
            )
        return installed

    def _check(self, body: Any) -> None:
        if not isinstance(body, dict) or "protocol" not in body:
            raise GarbageError(f"{str(body)[:80]!r} is no answer of {VERSION_PATH}")
        if body["protocol"] != PROTOCOL:
            raise UnavailableError(
                f"the server speaks protocol {body['protocol']!r} of docs/endpoint.md, this "
                f"version of evomerge {PROTOCOL}"
            )
        theirs = body.get("sources")
        if not isinstance(theirs, dict):
            raise GarbageError("no sources")
        for name, digest in self._sources.items():
            if theirs.get(name, "missing") not in (digest, None):  # None: it does not say
                raise UnavailableError(
                    f"the server's model {name!r} is {theirs.get(name, 'missing')}, this run's is "
                    f"{digest}; start the server with the same models"
                )


class LoraInstall:
    """Writes each candidate as a PEFT adapter and has vLLM load it at run time.

    Each one gets a name of its own: vLLM's prefix cache is kept by name, so that an adapter
    loaded in place could meet the keys and values of the one before it. The one before is
    unloaded and removed; the last one when this process ends.

    Source: vLLM, docs/features/lora.md and entrypoints/serve/lora; needs
    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True on the server.
    """

    def __init__(
        self,
        client: Client,
        *,
        folder: Path,
        folder_on_server: str,
        base: str,
        export: Callable[[Recipe, Path], str | None],
    ) -> None:
        """Prepare; nothing is sent.

        Args:
            client: The connection.
            folder: Where adapters are written.
            folder_on_server: The same folder as the server sees it.
            base: Name of the base model on the server.
            export: Writes a recipe as an adapter and returns the digest of the merged tensors, or
                writes nothing and returns None where the merge equals the base.
        """
        self._client, self._folder, self._on_server = client, folder, folder_on_server
        self._base, self._export = base, export
        self._own = uuid.uuid4().hex[:8]  # several workers may install the same recipe
        self._n_installed = 0
        self._remove: weakref.finalize[Any, LoraInstall] | None = None

    def __call__(self, recipe: Recipe) -> Installed:
        """Write and load an adapter; see `Install`."""
        if self._remove is not None:
            self._remove()
            self._remove = None
        self._n_installed += 1
        version = f"evomerge-{recipe.digest()}-{self._own}-{self._n_installed}"
        folder = self._folder / version
        weights_digest = self._export(recipe, folder)
        if weights_digest is None:
            return Installed(self._base)
        self._remove = weakref.finalize(self, _remove, self._client, version, folder)
        body = {"lora_name": version, "lora_path": f"{self._on_server.rstrip('/')}/{version}"}
        try:
            self._client.ask("POST", "/v1/load_lora_adapter", body, _accepted)
        except EvaluationError as error:
            if "already" not in str(error):  # a first attempt went through, its answer was lost
                raise
        return Installed(version, weights_digest)


def _remove(client: Client, version: str, folder: Path) -> None:
    """Unload an adapter, unless its server is gone, and delete its folder."""
    client.try_once("POST", "/v1/unload_lora_adapter", {"lora_name": version})
    shutil.rmtree(folder, ignore_errors=True)


def _accepted(body: Any) -> None:
    """Take any answer that came with status 200: vLLM says "Success: …" in plain text."""


def _installed(body: Any) -> Installed:
    version = _version(body)
    digest = body.get("weights_digest", "")
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{0,64}", digest):
        raise GarbageError("weights_digest is not hexadecimal")
    return Installed(version, digest)


def _version(body: Any) -> str:
    version = body.get("version") if isinstance(body, dict) else None
    if not isinstance(version, str) or not version:
        raise GarbageError(f"{str(body)[:80]!r} has no version")
    return version
