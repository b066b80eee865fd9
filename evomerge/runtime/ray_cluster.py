"""A connection to Ray: a private cluster on this machine, or one that runs elsewhere.

What asks Ray's control store is called at the start, or by `ClusterWatch` in a thread of its own:
such calls block when its host is down.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from typing import Any

from evomerge.errors import ExecutorError, first_line
from evomerge.runtime.cluster_environment import (
    LOOPBACK_ONLY,
    START_ONE,
    Surroundings,
    guarded,
    is_loopback,
    local_surroundings,
    remote_surroundings,
    require_cluster,
)
from evomerge.runtime.node_facts import local_node
from evomerge.runtime.placement_plan import NodeFacts, WorkerShape
from evomerge.runtime.scorer_actor import Reply, ScorerActor

OBJECT_STORE_BYTES = 100 * 2**20  # nothing large goes there; Ray's default: 30 % of the memory
# Label of a node: free GiB of each of its GPUs, where its driver cannot be asked.
GPU_LABEL = "evomerge-gpu-gib"
PROBE_SECONDS = 60.0  # for a node to say what its GPUs have free


class Cluster:
    """A connection to Ray, and the cluster itself when it was started here."""

    def __init__(self, address: str | None, n_cpus: int, *, insecure: bool = False) -> None:
        """Start a cluster on this machine (address None) or join one; see `require_cluster`.

        An initialised Ray is used as it is and left running by `close`.

        Raises:
            ExecutorError: The cluster cannot be started or reached, or is open to anyone.
        """
        self._surroundings: Surroundings | None = None
        self._is_local = address is None
        if "ray" in sys.modules and sys.modules["ray"].is_initialized():
            return
        if address is not None:
            address = _resolved(address)
            surroundings = remote_surroundings(is_open=require_cluster(address, insecure=insecure))
        else:
            surroundings = local_surroundings()
        try:
            self._connect(address or "local", n_cpus, surroundings)
        except BaseException:
            surroundings.restore()
            _adjust_ray(loopback_only=False, quiet=False)
            raise
        self._surroundings = surroundings

    def _connect(self, address: str, n_cpus: int, surroundings: Surroundings) -> None:
        import ray

        _adjust_ray(loopback_only=self._is_local, quiet=True)
        local: dict[str, Any] = {
            "num_cpus": n_cpus,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_temp_dir": surroundings.ray_folder,
        }
        try:
            with guarded():
                ray.init(
                    address=address,
                    log_to_driver=False,
                    logging_level="ERROR",
                    **(local if self._is_local else {}),
                )
        except Exception as error:  # some of what Ray raises here is of no other class
            ray.shutdown()
            where = "started on this machine" if self._is_local else f"joined at {address}"
            reason = first_line(error.__cause__ or error)
            raise ExecutorError(f"no Ray cluster could be {where}: {reason}") from error

    def gpus_per_worker(self) -> float:
        """Return 1 when the cluster has GPUs, else 0."""
        import ray

        return 1.0 if ray.cluster_resources().get("GPU", 0) > 0 else 0.0

    def require_alive(self) -> None:
        """Raise when a cluster started here has lost its main processes; asks only the OS.

        Workers go on for a while then, but none can be started, and Ray ends this process
        without an exception a minute after its control store has died.
        """
        if self._surroundings is None or not self._is_local:
            return
        import ray

        for kind, process in ray._private.worker._global_node.dead_processes():
            if kind in ("raylet", "gcs_server"):
                raise ExecutorError(
                    f"the private Ray cluster broke down: its {kind} ended with code "
                    f"{process.returncode}. Nothing that was told is lost; resume the run"
                )

    def close(self) -> None:
        """Disconnect; ends the cluster when it was started here."""
        if self._surroundings is None:
            return
        import ray

        ray.shutdown()
        self._surroundings.restore()
        self._surroundings = None
        _adjust_ray(loopback_only=False, quiet=False)


def _resolved(address: str) -> str:
    """Return HOST:PORT of the cluster this machine is part of ("auto"); or as Ray will use it."""
    if address != "auto" and not is_loopback(address):
        return address
    import ray

    try:
        found = ray._private.services.canonicalize_bootstrap_address(address)
    except (OSError, ValueError) as error:
        raise ExecutorError(f"no Ray cluster at {address}: {error}. {START_ONE}") from None
    if found is None:
        raise ExecutorError(f"no Ray cluster runs on this machine. {START_ONE}")
    return str(found)


def _adjust_ray(*, loopback_only: bool, quiet: bool) -> None:
    """Set what Ray has no public setting for; it reads the environment when it is imported.

    Quiet: the deaths of workers are not printed on this process's stdout, where results go.
    """
    import ray

    inherited = os.environ.get(LOOPBACK_ONLY, "1") in ("1", "true", "True")
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = inherited and not loopback_only
    ray._private.worker._worker_logs_enabled = not quiet
    ray._raylet.Config.initialize("")
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


class PlacedActor(ScorerActor):
    """A `ScorerActor` that also says on which node it is."""

    def build(self, factory: bytes, name: str, path: list[str]) -> Reply:
        """Build the worker; the reply's value is the id of its node."""
        import ray

        reply = super().build(factory, name, path)
        node = ray.get_runtime_context().get_node_id()
        return reply if reply.error is not None else Reply(node, detail=reply.detail)


def node_strategy(node: str) -> Any:
    """Return Ray's scheduling strategy of what has to run on a node; "" is any."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False) if node else "DEFAULT"


class RayNodes:
    """The nodes of the cluster this process is connected to; see `AskedCluster`."""

    def live(self) -> Collection[str]:
        """Return the ids of nodes that live and have CPUs to offer."""
        return self._records().keys()

    def draining(self) -> frozenset[str]:
        """Return the ids of nodes that are about to go: pre-empted, or idle and given back."""
        import ray

        return frozenset(ray._private.state.state.get_draining_nodes())

    def probe(self, ids: Sequence[str]) -> list[NodeFacts]:
        """Return what nodes have, asked in a task on each, in the order of `ids`.

        CPUs and the number of GPUs are Ray's. What a GPU has free is what the node's label
        `evomerge-gpu-gib` says, else what the driver says there.
        """
        import ray

        records = self._records()
        task = ray.remote(local_node)
        calls = {}
        for node in ids:
            options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": node_strategy(node)}
            calls[task.options(**options).remote()] = node
        done, late = ray.wait(list(calls), num_returns=len(calls), timeout=PROBE_SECONDS)
        for call in late:
            ray.cancel(call)
        found = {}
        for call in done:
            node = calls[call]
            if node not in records:
                continue
            try:
                found[node] = _facts(records[node], ray.get(call))
            except ray.exceptions.RayError:  # it died meanwhile
                continue
        return [found[node] for node in ids if node in found]

    def request(self, shapes: Sequence[WorkerShape]) -> None:
        """Tell the cluster's autoscaler what all workers together want; none: nothing any more."""
        from ray.autoscaler.sdk import request_resources

        if shapes:
            request_resources(bundles=[shape.bundle() for shape in shapes])
        else:
            request_resources(num_cpus=0)

    def _records(self) -> dict[str, dict[str, Any]]:
        import ray

        alive = (node for node in ray.nodes() if node["Alive"])
        return {str(node["NodeID"]): node for node in alive if node["Resources"].get("CPU", 0) > 0}


def _facts(record: dict[str, Any], seen: NodeFacts) -> NodeFacts:
    offered, label = record["Resources"], record["Labels"].get(GPU_LABEL)
    n_gpus = int(offered.get("GPU", 0))
    name = str(record["NodeManagerAddress"])
    gpus, trouble = seen.gpus, ""
    if label is not None:
        try:
            gpus = (int(float(label) * 2**30),) * n_gpus
        except (ValueError, OverflowError):  # words, nan; inf
            trouble = (
                f"node {name}: label {GPU_LABEL} is {label!r}; expected the free memory of a GPU "
                "in GiB, such as 24"
            )
    # GPUs that Ray was told of and the node does not see are nobody's, and the other way round.
    gpus = gpus[:n_gpus]
    return NodeFacts(name, offered["CPU"], seen.memory, gpus, str(record["NodeID"]), trouble)


def cluster_nodes(address: str, *, insecure: bool) -> list[NodeFacts]:
    """Join a running cluster for as long as it takes to ask its nodes what they have.

    Raises:
        ExecutorError: It cannot be reached, is open to anyone, or a node's label makes no sense.
    """
    cluster = Cluster(address, 1, insecure=insecure)
    try:
        nodes = RayNodes()
        staying = sorted(set(nodes.live()) - nodes.draining())
        found = nodes.probe(staying)
    finally:
        cluster.close()
    for node in found:
        if node.trouble:
            raise ExecutorError(node.trouble)
    return found
