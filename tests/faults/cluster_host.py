"""Run a Ray cluster of a head and two nodes on this machine until stdin closes.

Prints the address; each line read adds a node. Run as `python -m tests.faults.cluster_host`.
"""

import sys


def main() -> None:
    from ray.cluster_utils import Cluster

    small = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    nodes = [cluster.add_node(num_cpus=1, **small) for _ in range(2)]
    raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
    print(cluster.address, *raylets, flush=True)
    for _ in sys.stdin:
        cluster.add_node(num_cpus=1, **small)
        print("added", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
