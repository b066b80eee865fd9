"""An object store as a run needs it: whole objects, and writes that happen on a condition only."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from evomerge.errors import ConfigError, RunError

# Their servers write on a condition: If-None-Match and If-Match, or a generation to match.
SCHEMES = ("s3", "gs", "az")
# How long a request is tried again (throttling, 5xx, broken connections) before the search stops.
RETRY_SECONDS = 60.0
REQUEST_SECONDS = 20.0
# typer and pathlib make one slash of two: "s3:/bucket/run" is what is left of a URL in a Path.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
_PLACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def object_url(run: Path | str) -> str | None:
    """Return the URL that is meant by `run`, without a closing slash; None for a path or a name.

    Raises:
        ConfigError: It is a URL that cannot hold a run.
    """
    found = _URL.fullmatch(str(run))
    if found is None:
        return None
    scheme, place = found[1].lower(), found[2].rstrip("/")
    if scheme == "file":
        raise ConfigError("file:// URLs are folders: give the path itself")
    # Named without what stands in it: that may be a secret.
    if any(mark in place for mark in "@?#"):
        raise ConfigError(
            f"{scheme}://…: a run's URL has no user, password or query part; credentials belong in "
            "the environment (AWS_ACCESS_KEY_ID, …)"
        )
    if scheme not in SCHEMES:
        raise ConfigError(
            f"{scheme}://{place}: cannot hold a run: its server cannot be asked to write an object "
            f"only if it is not there yet, so two drivers could not be told apart. Use "
            f"{', '.join(f'{name}://' for name in SCHEMES)} or a folder"
        )
    if not _PLACE.fullmatch(place):
        raise ConfigError(
            f"{scheme}://{place}: expected {scheme}://BUCKET/RUN of letters, digits, '.', '_', '-'"
        )
    return f"{scheme}://{place}"


@dataclass(frozen=True)
class Stored:
    """An object as it was read.

    Attributes:
        data: Its content.
        version: What a conditional write has to name; see `ObjectStore.replace`.
        modified: Seconds since the epoch, of the server's clock, when it was written.
    """

    data: bytes
    version: dict[str, str]
    modified: float


class ObjectStore:
    """The objects below one URL.

    Conditional writes are answered truthfully also when a first try was carried out and its
    answer was lost: the object is then compared with what was to be written. So what is written
    on a condition has to differ between writers.
    """

    def __init__(self, url: str, store: Any) -> None:
        """Args: url: for messages; store: an obstore store whose root is that URL."""
        self.url = url
        self._store = store
        self._api: Any = import_module("obstore")
        self._errors: Any = import_module("obstore.exceptions")

    def get(self, name: str) -> Stored | None:
        """Return an object, None if there is none of that name."""
        with self._explained(name, "read"):
            try:
                found = self._api.get(self._store, name)
                data = bytes(found.bytes())
            except FileNotFoundError:
                return None
        return Stored(data, _version(found.meta), found.meta["last_modified"].timestamp())

    def put(self, name: str, data: bytes) -> dict[str, str]:
        """Write an object, over one that is there; return its version."""
        with self._explained(name, "written"):
            return _version(self._api.put(self._store, name, data, use_multipart=False))

    def create(self, name: str, data: bytes) -> dict[str, str] | None:
        """Write a new object; return its version, None if there is another one of that name."""
        return self._put_if(name, data, "create")

    def replace(self, name: str, data: bytes, version: dict[str, str]) -> dict[str, str] | None:
        """Write an object over exactly that version; return the new one, None if it is not there.

        Raises:
            RunError: The store cannot be reached, or refuses.
        """
        return self._put_if(name, data, version)

    def _put_if(self, name: str, data: bytes, mode: object) -> dict[str, str] | None:
        with self._explained(name, "written"):
            try:
                done = self._api.put(self._store, name, data, mode=mode, use_multipart=False)
            except (self._errors.AlreadyExistsError, self._errors.PreconditionError):
                there = self.get(name)
                return there.version if there is not None and there.data == data else None
            except (FileNotFoundError, self._errors.NotFoundError):
                return None  # what was to be replaced is gone
        return _version(done)

    def names(self, prefix: str = "") -> dict[str, str]:
        """Return name -> ETag of all objects whose names begin with that folder name."""
        with self._explained(prefix, "listed"):
            found = [item for page in self._api.list(self._store, prefix or None) for item in page]
        return {item["path"]: str(item["e_tag"]) for item in found}

    def delete(self, name: str) -> None:
        """Remove an object; it need not exist."""
        with self._explained(name, "removed"):
            try:
                self._api.delete(self._store, name)
            except FileNotFoundError:
                return

    @contextmanager
    def _explained(self, name: str, what: str) -> Iterator[None]:
        try:
            yield
        except (self._errors.BaseError, OSError) as error:
            place = f"{self.url}/{name}".rstrip("/")
            raise RunError(
                f"{place}: cannot be {what}: {_plain(str(error))}. Check the URL, the store and "
                "the credentials. Nothing that a search told is lost; resume it when that is mended"
            ) from None


def open_object_store(url: str) -> ObjectStore:
    """Return the store of a URL that `object_url` has accepted; nothing is asked of it yet.

    Credentials, region and endpoint come from the environment (AWS_…, GOOGLE_…, AZURE_…), those
    of S3 also from where boto3 finds them, if it is installed.

    Raises:
        ConfigError: obstore is not installed, or the environment names something it refuses.
    """
    try:
        stores: Any = import_module("obstore.store")
    except ImportError:
        raise ConfigError(f"{url}: needs obstore: pip install 'evomerge[object-store]'") from None
    s3 = _s3_settings() if url.startswith("s3:") else {}
    client = {"timeout": timedelta(seconds=REQUEST_SECONDS), **s3.pop("client_options", {})}
    retries = {"max_retries": 12, "retry_timeout": timedelta(seconds=RETRY_SECONDS)}
    try:
        store = stores.from_url(url, client_options=client, retry_config=retries, **s3)
    except Exception as error:  # obstore has a class per store and cause
        raise ConfigError(f"{url}: cannot be opened: {_plain(str(error))}") from None
    return ObjectStore(url, store)


def _s3_settings() -> dict[str, Any]:
    """Return arguments for what obstore does not read in the environment by itself."""
    settings: dict[str, Any] = {}
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    endpoint = next((os.environ[name] for name in names if os.environ.get(name)), "")
    if endpoint:
        settings["config"] = {"endpoint": endpoint}
    # A server on this machine needs no encryption; elsewhere AWS_ALLOW_HTTP=true has to say so.
    if endpoint.startswith("http://") and urlsplit(endpoint).hostname in _LOOPBACK:
        settings["client_options"] = {"allow_http": True}
    if not os.environ.get("AWS_ACCESS_KEY_ID") and find_spec("boto3") is not None:
        from obstore.auth.boto3 import Boto3CredentialProvider

        with suppress(ValueError):  # boto3 knows none either: obstore asks the machine's metadata
            settings["credential_provider"] = Boto3CredentialProvider()
    return settings


def _version(meta: Any) -> dict[str, str]:
    return {key: meta[key] for key in ("e_tag", "version") if meta.get(key) is not None}


def _plain(text: str) -> str:
    """Return what an error says in its first line, without the answer's body."""
    first = (text.strip().splitlines() or ["unknown"])[0]
    return first.partition(": <?xml")[0].strip()[:300].rstrip(".")
