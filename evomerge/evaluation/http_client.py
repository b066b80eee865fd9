"""JSON over HTTP with bounded concurrency, retries and a cost counter.

What a failure means decides its class. A server that is down, busy, refuses us or answers garbage
says nothing about the candidate: `UnavailableError` ends the run, which can be resumed. A request
that the server understood and refused is the candidate's own failure: `EvaluationError`.
"""

from __future__ import annotations

import json
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from evomerge.errors import EvaluationError, UnavailableError, first_line
from evomerge.evaluation.server import Server
from evomerge.seeding import generator

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")
U = TypeVar("U")

MAX_ANSWER_BYTES = 64 * 2**20
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
# The server understood the request and refuses this one: too long, not a recipe it can merge.
_REFUSED = frozenset({400, 413, 422})


class GarbageError(Exception):
    """An answer that is not what the protocol promises; another attempt may get a better one."""


class _RetryError(Exception):
    """An attempt failed in a way that may pass."""

    def __init__(
        self, reason: str, seconds: float | None = None, *, is_crash: bool = False
    ) -> None:
        super().__init__(reason)
        self.seconds = seconds  # what Retry-After asks for
        self.is_crash = is_crash  # HTTP 500: the server's fault, or what this model made of it


@dataclass
class Usage:
    """What was used, added up; prices are per million tokens."""

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def __str__(self) -> str:
        parts = [f"{item.name}={getattr(self, item.name)}" for item in fields(self)[:-1]]
        return " ".join([*parts, f"cost={self.cost:.6f}"])


class Meter:
    """A thread-safe counter of what a client used since it was last read."""

    def __init__(self) -> None:
        """Start at nothing."""
        self._usage, self._lock = Usage(), threading.Lock()

    def add(self, **counts: float) -> None:
        """Add to the counts."""
        with self._lock:
            for key, count in counts.items():
                setattr(self._usage, key, getattr(self._usage, key) + count)

    def take(self) -> Usage:
        """Return the counts and start anew."""
        with self._lock:
            usage, self._usage = self._usage, Usage()
        return usage


def usage_text(meters: Iterable[Meter]) -> str:
    """Return what was used since the meters were last read, in one line; "" for nothing."""
    total = Usage()
    for usage in [meter.take() for meter in meters]:
        for item in fields(usage):
            setattr(total, item.name, getattr(total, item.name) + getattr(usage, item.name))
    return f"usage {total}" if total.requests else ""


def logged_usage(log: str) -> Usage | None:
    """Return the sum of the `usage_text` lines in a log; None when there are none."""
    total, is_found = Usage(), False
    pattern = "usage " + " ".join(rf"{item.name}=([\d.]+)" for item in fields(Usage))
    for found in re.finditer(pattern, log):
        is_found = True
        for item, text in zip(fields(Usage), found.groups(), strict=True):
            number = float(text) if item.name == "cost" else int(text)
            setattr(total, item.name, getattr(total, item.name) + number)
    return total if is_found else None


class Client:
    """Asks one server. Safe to use from several threads."""

    def __init__(self, server: Server, *, seed: int = 0) -> None:
        """Args: seed: of the jitter, which keeps clients from retrying in step."""
        self.server = server
        self.meter = Meter()
        self._seed = seed
        self._stopped = threading.Event()

    @cached_property
    def _http(self) -> httpx2.Client:
        import httpx2

        key = self.server.api_key()
        http = httpx2.Client(
            base_url=self.server.root(),
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=self.server.timeout_seconds,
            limits=httpx2.Limits(max_connections=self.server.concurrency),
        )
        weakref.finalize(self, http.close)
        return http

    def map(self, ask: Callable[[T], U], items: Sequence[T]) -> list[U]:
        """Return `ask` of every item, in order, `concurrency` at a time; the first error ends all.

        Raises:
            EvomergeError: What `ask` raised first.
        """
        if not items:
            return []
        _ = self._http  # built once, here: its errors are those of the config
        self._stopped.clear()
        with ThreadPoolExecutor(min(self.server.concurrency, len(items))) as pool:
            futures = [pool.submit(ask, item) for item in items]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                failed = [f for f in futures if f in done and f.exception() is not None]
                for future in failed[:1]:
                    future.result()
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [future.result() for future in futures]

    def ask(
        self, method: str, path: str, body: dict[str, Any] | None, read: Callable[[Any], T]
    ) -> T:
        """Send a request until it is answered, and return what `read` makes of the answer.

        Args:
            method: GET or POST.
            path: Behind the server's address, with its slash.
            body: Sent as JSON; None: nothing.
            read: Takes the decoded JSON; raises GarbageError when it is malformed.

        Raises:
            UnavailableError: The server is down, busy, refuses us or answers garbage.
            EvaluationError: The server refuses this very request.
            ConfigError: URL or key cannot be found.
        """
        attempt = 1
        while True:
            try:
                return read(self._once(method, path, body))
            except GarbageError as error:
                failure = _RetryError(f"answered garbage: {first_line(error)}")
            except _RetryError as error:
                failure = error
            if attempt == self.server.attempts:
                break
            self.meter.add(retries=1)
            self._pause(failure, attempt, f"{path} {json.dumps(body, sort_keys=True)}")
            attempt += 1
        what = f"{self._where(path)}: {self._clean(first_line(failure))}, in {attempt} attempts"
        if failure.is_crash and self.try_once("GET", "/v1/models", None):
            raise EvaluationError(f"{what}, while the server is alive")
        raise UnavailableError(
            f"{what}. Nothing that was told is lost: mend the server and resume the run"
        )

    def try_once(self, method: str, path: str, body: dict[str, Any] | None) -> bool:
        """Return whether a request succeeds at the first attempt."""
        try:
            self._once(method, path, body)
        except (_RetryError, EvaluationError, UnavailableError):
            return False
        return True

    def _once(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        """Return the decoded answer of one attempt."""
        import httpx2

        self.meter.add(requests=1)
        deadline = time.monotonic() + self.server.timeout_seconds
        content = bytearray()
        try:
            with self._http.stream(method, path, json=body) as response:
                for chunk in response.iter_bytes():
                    content += chunk
                    # The library's timeout is between two bytes: a drip would never end.
                    if time.monotonic() > deadline:
                        raise _RetryError(f"no whole answer in {self.server.timeout_seconds:g} s")
                    if len(content) > MAX_ANSWER_BYTES:
                        raise _RetryError(f"answered with more than {MAX_ANSWER_BYTES} bytes")
        except httpx2.TimeoutException:
            raise _RetryError(f"no answer in {self.server.timeout_seconds:g} s") from None
        except httpx2.RequestError as error:
            raise _RetryError(f"cannot be reached ({first_line(error)})") from None
        if response.is_success:
            return _decoded(bytes(content))
        said = f"HTTP {response.status_code}: {self._clean(_complaint(bytes(content)))}"
        if response.status_code in _PASSING:
            seconds = _retry_after(response.headers.get("Retry-After"))
            raise _RetryError(said, seconds, is_crash=response.status_code == 500)
        if response.status_code in _REFUSED:
            raise EvaluationError(f"{self._where(path)}: {said}")
        raise UnavailableError(
            f"{self._where(path)}: {said}. Check url, model and api_key_env of the server, then "
            "resume the run"
        )

    def _pause(self, failure: _RetryError, attempt: int, request: str) -> None:
        """Wait before the next attempt; end at once when another request has failed for good."""
        longest = self.server.longest_wait_seconds
        if failure.seconds is not None and failure.seconds > longest:
            raise UnavailableError(
                f"{self._where('')}: {first_line(failure)}; it asks to wait "
                f"{failure.seconds:.0f} s, more than longest_wait_seconds {longest:g}. Resume the "
                "run later, or raise that setting"
            )
        backoff = min(longest, self.server.first_wait_seconds * 2 ** (attempt - 1))
        jitter = generator(self._seed, "retry", request, attempt).uniform(0.5, 1.0)
        # Never sooner than the server asks for.
        if self._stopped.wait(backoff * jitter + (failure.seconds or 0.0)):
            raise UnavailableError(f"{self._where('')}: given up after another request failed")

    def _where(self, path: str) -> str:
        return f"server {self.server.root()}{path}"

    def _clean(self, text: str) -> str:
        """Return a server's words in one line, cut, without the key should it repeat it."""
        key = self.server.api_key()
        text = " ".join(text.split())
        return (text.replace(key, "***") if key else text)[:300]


def _decoded(content: bytes) -> Any:
    """Return the JSON of an answer; what is not JSON (vLLM's adapter calls) comes as text."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return content[:200].decode("utf-8", "replace")


def _complaint(content: bytes) -> str:
    """Return what an error answer says, in OpenAI's form or any other."""
    body = _decoded(content)
    error = body.get("error", body.get("detail")) if isinstance(body, dict) else body
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message) if message else "no reason given"


def _retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header: a number, or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        then = parsedate_to_datetime(value)
    except ValueError:
        return None
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return max(0.0, (then - datetime.now(UTC)).total_seconds())
