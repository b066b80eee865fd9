"""The reference server of a config's models; see docs/endpoint.md."""

from __future__ import annotations

from pathlib import Path

from evomerge.config.build import compute_derived
from evomerge.config.cache import usable_cache
from evomerge.config.schema import RunConfig
from evomerge.config.session import preflight
from evomerge.config.transforms import fill_transforms
from evomerge.config.workers import load_subject
from evomerge.errors import ExecutorError
from evomerge.runtime.placement import pick_device, threads_per_worker, use_threads
from evomerge.runtime.reference_server import ReferenceServer
from evomerge.runtime.worker import MergeInputs, Worker


def build_server(
    config: RunConfig, base_dir: Path, *, host: str, port: int, token: str
) -> ReferenceServer:
    """Open a config's models, load one of them and bind the address.

    Args:
        config: The config of the search, as written.
        base_dir: Folder that its relative paths start from.
        host: Address to listen on.
        port: 0 picks a free one.
        token: What clients must send.

    Raises:
        EvomergeError: Whatever is wrong with config, models or address.
    """
    prepared = preflight(config, base_dir)
    models, runtime = prepared.models, prepared.config.runtime
    fill_transforms(models.virtual)
    derived = compute_derived(models, prepared.space, usable_cache(runtime.cache))
    use_threads(runtime.threads or threads_per_worker(1, models.space.n_elements))
    device = pick_device(runtime.device)
    subject = load_subject(models, "AutoModelForCausalLM", device)
    inputs = MergeInputs(models.space, models.sources, derived)
    worker = Worker(inputs, [subject], {}, device=device, name="server")
    sources = {str(record["id"]): str(record["digest"]) for record in models.record}
    try:
        return ReferenceServer(worker, subject, sources=sources, token=token, host=host, port=port)
    except OSError as error:
        raise ExecutorError(f"cannot listen on {host}:{port}: {error}; give --port") from error
