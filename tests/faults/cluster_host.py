"""Run a Ray cluster of a head and two nodes on this machine until stdin closes.

Every node has an address of its own, of the loopback network: 127.0.0.2, 127.0.0.3, … Prints the
head's address and each node's address and raylet; each line read adds a node, whose address is
printed. Run as `python -m tests.faults.cluster_host`.
"""

import sys
from typing import Any

SMALL = {"include_dashboard": False, "object_store_memory": 100 * 2**20}


def address_and_raylet(node: Any) -> str:
    return f"{node.node_ip_address} {node.all_processes['raylet'][0].process.pid}"


def main() -> None:
    from ray.cluster_utils import Cluster

    def add(number: int) -> Any:
        return cluster.add_node(num_cpus=1, node_ip_address=f"127.0.0.{number}", **SMALL)

    head = {"num_cpus": 0, "node_ip_address": "127.0.0.2", **SMALL}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [add(number) for number in (3, 4)]
    print(cluster.address, *map(address_and_raylet, nodes), flush=True)
    for number, _ in enumerate(sys.stdin, 5):
        print("added", address_and_raylet(add(number)), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
