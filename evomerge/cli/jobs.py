"""`evomerge submit`, `logs`, `stop`, and `status --address`: searches as jobs of a Ray cluster."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

from evomerge.cli.inspect import status_facts
from evomerge.cli.output import say
from evomerge.config.locate import POPULATIONS, run_at
from evomerge.config.schema import load_config
from evomerge.config.session import with_runtime
from evomerge.config.submit import CONFIG_NAME, portable_config, read_requirements
from evomerge.config.yaml_file import dump_yaml
from evomerge.errors import ConfigError, ExecutorError, RunLockedError
from evomerge.runtime.cluster_environment import exposed_token
from evomerge.runtime.ray_jobs import RayJobs
from evomerge.storage.object_store import object_url
from evomerge.storage.run_store import RunFolder


def submit_command(
    config_path: Path,
    run: Path | None,
    *,
    address: str,
    workers: int | None,
    pip: Path | None,
    insecure: bool,
    overrides: list[str],
    as_json: bool,
) -> None:
    """Send a search to a cluster.

    Raises:
        ConfigError: The config, the requirements or the run's name are wrong.
        RunLockedError: The run is driven already, as a job of this cluster or otherwise.
        ExecutorError: The cluster cannot be reached, or is open to anyone.
    """
    config = load_config(config_path, overrides)
    config = with_runtime(config, executor="ray", address="auto", workers=workers)
    packages = () if pip is None else read_requirements(pip)
    config = portable_config(config, config_path.resolve().parent)
    folder = _run_there(run or POPULATIONS / config.name)
    # Where this machine sees the run folder; if it does not, the job itself is refused.
    if folder.is_driven():
        raise RunLockedError(
            f"{folder.where}: a driver is running this search already; it goes on by itself"
        )
    folder.refuse_links()
    jobs = _connect(address, insecure)
    command = ["python", "-m", "evomerge", "search", CONFIG_NAME, "--run", folder.where]
    if insecure:
        command.append("--insecure")
    with tempfile.TemporaryDirectory(prefix="evomerge-submit-") as place:
        text = dump_yaml(config.model_dump(mode="json"))
        Path(place, CONFIG_NAME).write_text(text, encoding="utf-8")
        before = jobs.submit(
            folder.path.name,
            command=command,
            run=folder.where,
            working_dir=Path(place),
            pip=packages,
        )
    facts = {"job": folder.path.name, "run": folder.where, "address": jobs.address}
    if as_json:
        say(json.dumps({**facts, "before": before and before.state}), to=sys.stdout)
        return
    then = f", the run goes on: its last job has {before.state}" if before else ""
    say(f"submitted {folder.path.name} to {jobs.address}{then}", to=sys.stdout)
    say(f"follow it with:  evomerge logs {folder.path.name} --address {jobs.address} --follow")


def logs_command(run: Path, *, address: str, follow: bool, insecure: bool) -> None:
    """Print what a job has printed, until it ends if `follow`."""
    jobs = _connect(address, insecure)
    parts = jobs.follow(_id(run)) if follow else [jobs.logs(_id(run))]
    for part in parts:
        say(part.removesuffix("\n"), to=sys.stdout)


def stop_command(run: Path, *, address: str, insecure: bool, as_json: bool) -> None:
    """Ask a job to stop."""
    was_alive = _connect(address, insecure).stop(_id(run))
    if as_json:
        say(json.dumps({"job": _id(run), "was_running": was_alive}), to=sys.stdout)
        return
    say(f"{_id(run)}: {'draining' if was_alive else 'had ended before'}", to=sys.stdout)


def job_status_command(run: Path, *, address: str, insecure: bool, as_json: bool) -> None:
    """Print the state of a job, and of its run where this machine sees the folder.

    Raises:
        ExecutorError: The cluster has no job of that name.
    """
    jobs = _connect(address, insecure)
    job = jobs.find(_id(run))
    if job is None:
        raise ExecutorError(f"{jobs.address}: there is no job {_id(run)}")
    facts = {"job": dataclasses.asdict(job)}
    folder = run_at(job.run)
    if job.run and folder.exists() and folder.journal.exists():
        facts |= status_facts(folder)
    if as_json:
        say(json.dumps(facts), to=sys.stdout)
        return
    for key, value in (facts.pop("job") | facts).items():
        say(f"{key:<14}{value}", to=sys.stdout)


def _connect(address: str, insecure: bool) -> RayJobs:
    jobs = RayJobs(address, insecure=insecure)
    if exposed := exposed_token():
        say(f"warning: other users can read the Ray token: chmod 600 {exposed}")
    if jobs.sends_token_in_clear:
        say(
            "warning: http:// to another machine shows the token to whoever listens in between; "
            "forward the port instead (ssh -L 8265:localhost:8265 HEAD), or use https://"
        )
    return jobs


def _run_there(run: Path) -> RunFolder:
    """Return the run at a URL, or at a path that is the same on every machine."""
    if object_url(run) is not None:
        return run_at(run)
    return RunFolder(run.expanduser().absolute())


def _id(run: Path) -> str:
    name = run.absolute().name
    if not name:
        raise ConfigError(f"{run}: expected the name of a run")
    return name
