"""Searches as jobs of a Ray cluster that runs elsewhere: submit, look, read, stop.

Talks to the dashboard of the cluster's head (HTTP, port 8265) with Ray's own client. The token
goes into a header of every request, and nowhere else: not into the job, its environment or a
message.
"""

from __future__ import annotations

import logging
import re
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from evomerge.errors import ExecutorError, RunLockedError, first_line
from evomerge.runtime.cluster_environment import CONNECT_SECONDS, TOKEN_PATH, is_loopback, token

ENDED = ("STOPPED", "SUCCEEDED", "FAILED")
# From SIGTERM to SIGKILL: running evaluations may finish in this time.
STOP_SECONDS = 600
POLL_SECONDS = 1.0
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")


@dataclass(frozen=True)
class Job:
    """What a cluster knows of a search.

    Attributes:
        id: Its submission id: the run's name, then NAME--2, NAME--3, … where it goes on. Never one
            id twice: Ray's monitor of a job that just ended would call the next of that id dead.
        number: 1 for the first job of the run, 2 for the next.
        state: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.
        message: Ray's sentence about it.
        run: Path of the run folder on the cluster's machines.
        exit_code: Of the search, when it has ended by itself.
    """

    id: str
    number: int
    state: str
    message: str
    run: str
    exit_code: int | None

    @property
    def is_alive(self) -> bool:
        """Whether it runs or is about to."""
        return self.state not in ENDED


class RayJobs:
    """The jobs of one cluster."""

    def __init__(self, address: str, *, insecure: bool = False) -> None:
        """Connect.

        Args:
            address: ``http://HOST:8265`` or ``https://…``, of the head's dashboard.
            insecure: Also talk to a cluster on another machine that asks for no token.

        Raises:
            ExecutorError: The address is malformed, nobody answers there, the cluster is open to
                anyone, or it refuses the token.
        """
        self.address = address.rstrip("/")
        secret = _require_closed(self.address, insecure)
        self.sends_token_in_clear = bool(secret) and _is_exposed(self.address)
        from ray.job_submission import JobSubmissionClient

        # What it uploads is nobody's concern.
        logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        with self._explained("connect"):
            self._client = JobSubmissionClient(self.address, headers=headers)

    def find(self, run_id: str) -> Job | None:
        """Return the latest job of a run; None when the cluster has none of that name."""
        with self._explained("list the jobs"):
            listed = [(job.metadata or {}, job) for job in self._client.list_jobs()]
        jobs = [
            Job(
                job.submission_id,
                int(facts.get("number", 1)),
                str(getattr(job.status, "value", job.status)),
                job.message or "",
                facts.get("run", ""),
                job.driver_exit_code,
            )
            for facts, job in listed
            if job.submission_id and facts.get("name", job.submission_id) == run_id
        ]
        return max(jobs, key=lambda job: job.number, default=None)

    def submit(
        self,
        run_id: str,
        *,
        command: Sequence[str],
        run: str,
        working_dir: Path,
        pip: Sequence[str] = (),
    ) -> Job | None:
        """Send a search to the cluster.

        Args:
            run_id: Name of the run; a cluster runs one job of that name at a time.
            command: Its words.
            run: Run folder on the cluster's machines.
            working_dir: Folder whose files the command finds in its own.
            pip: Requirements for driver and workers, on top of what the machines have.

        Returns:
            The job of the same run that had ended before, if there was one.

        Raises:
            RunLockedError: A job of that name runs.
            ExecutorError: The name cannot be a job's, or the cluster refuses.
        """
        if not _ID.fullmatch(run_id):
            raise ExecutorError(f"{run_id!r} cannot be the name of a job: use A-Z a-z 0-9 _ . -")
        before = self.find(run_id)
        if before is not None and before.run not in ("", run):
            raise RunLockedError(
                f"{self.address}: job {run_id} is that of another run, {before.run}; give this "
                "one another name with --run"
            )
        if before is not None and before.is_alive:
            raise RunLockedError(
                f"{self.address}: job {run_id} is {before.state} already. Follow it with: "
                f"evomerge logs {run_id} --address {self.address}"
            )
        environment: dict[str, Any] = {
            "working_dir": str(working_dir),
            "env_vars": {
                "OMP_WAIT_POLICY": "PASSIVE",
                "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
            },
        }
        if pip:
            environment["pip"] = {"packages": list(pip), "pip_check": True}
        number = 1 if before is None else before.number + 1
        with self._explained(f"submit {run_id}"):
            self._client.submit_job(
                submission_id=run_id if before is None else f"{run_id}--{number}",
                entrypoint=shlex.join(command),  # a shell reads it
                runtime_env=environment,
                metadata={"run": run, "name": run_id, "number": str(number)},
            )
        return before

    def logs(self, run_id: str) -> str:
        """Return what the job has printed so far."""
        return self._logs_of(self._require(run_id))

    def follow(self, run_id: str) -> Iterator[str]:
        """Yield what the job prints, from its beginning to its end."""
        seen = 0
        while True:
            job = self._require(run_id)  # before: what came last is read after
            text = self._logs_of(job)
            if len(text) > seen:
                yield text[seen:]
                seen = len(text)
            if not job.is_alive:
                return
            time.sleep(POLL_SECONDS)

    def stop(self, run_id: str) -> bool:
        """Ask a job to finish what it evaluates and stop; False when it had ended before."""
        job = self._require(run_id)
        if not job.is_alive:
            return False
        with self._explained(f"stop {run_id}"):
            return bool(self._client.stop_job(job.id))

    def _logs_of(self, job: Job) -> str:
        with self._explained(f"read the logs of {job.id}"):
            return str(self._client.get_job_logs(job.id))

    def _require(self, run_id: str) -> Job:
        job = self.find(run_id)
        if job is None:
            raise ExecutorError(f"{self.address}: there is no job {run_id}")
        return job

    def _explained(self, what: str) -> AbstractContextManager[None]:
        return _explained(f"{self.address}: cannot {what}")


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn whatever Ray's client and its HTTP library raise into an ExecutorError."""
    import ray
    import requests

    try:
        yield
    except (
        RuntimeError,
        ValueError,
        OSError,
        requests.RequestException,
        ray.exceptions.RayError,
    ) as error:
        raise ExecutorError(f"{what}: {first_line(error)}") from None


def parsed_address(address: str) -> tuple[str, str]:
    """Return scheme and HOST:PORT of a dashboard's address.

    Raises:
        ExecutorError: It is not ``http://HOST:PORT`` or ``https://…``. Ray would import a module
            named by any other scheme.
    """
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        port, parts = None, urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise ExecutorError(f"--address is {address!r}; use http://HOST:8265 of the head")
    return parts.scheme, f"{parts.hostname}:{port or (443 if parts.scheme == 'https' else 80)}"


def _is_exposed(address: str) -> bool:
    scheme, place = parsed_address(address)
    return scheme == "http" and not is_loopback(place)


def _require_closed(address: str, insecure: bool) -> str:
    """Return the token to send, "" for an open cluster; nothing secret is sent to find out."""
    _, place = parsed_address(address)
    status = _status(f"{address}/api/jobs/")
    if status == 200:
        if not is_loopback(place) and not insecure:
            raise ExecutorError(
                f"the Ray cluster at {address} has no authentication: anyone who reaches it can "
                "run code there. Start it with RAY_AUTH_MODE=token, or give --insecure"
            )
        return ""
    if status != 401:
        raise ExecutorError(
            f"what answers at {address} is not the dashboard of Ray (HTTP status {status})"
        )
    secret = token()
    if not secret:
        raise ExecutorError(
            f"the Ray cluster at {address} wants a token; put it into a file (mode 0600) named by "
            f"{TOKEN_PATH}, or into ~/.ray/auth_token"
        )
    if _status(f"{address}/api/jobs/", {"Authorization": f"Bearer {secret}"}) != 200:
        raise ExecutorError(
            f"the Ray cluster at {address} refuses this token; put the cluster's own into a file "
            f"named by {TOKEN_PATH}, or into ~/.ray/auth_token"
        )
    return secret


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A token is for the address it was given for."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _status(url: str, headers: Mapping[str, str] | None = None) -> int:
    request = urllib.request.Request(url, headers=dict(headers or {}))
    proxies = urllib.request.ProxyHandler({} if is_loopback(parsed_address(url)[1]) else None)
    opener = urllib.request.build_opener(_NoRedirect, proxies)
    try:
        with opener.open(request, timeout=CONNECT_SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return int(error.code)
    except (OSError, ValueError) as error:
        raise ExecutorError(
            f"nobody answers at {url.removesuffix('/api/jobs/')}: {error}. Start the head with "
            "`RAY_AUTH_MODE=token ray start --head`, or forward its port 8265 to this machine"
        ) from None
