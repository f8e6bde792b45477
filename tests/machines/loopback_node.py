"""Adds a node to a Ray cluster on the loopback interface, as ray.cluster_utils does; `ray start` refuses to.

python loopback_node.py HEAD NAME CPUS MEMORY OBJECT_STORE_MEMORY
"""

import sys
import time
from pathlib import Path

from ray._private.node import Node
from ray._private.parameter import RayParams


def main() -> None:
    head, name, cpus, memory, objects = sys.argv[1:]
    parameters = RayParams(
        gcs_address=head,
        redis_address=head,
        node_ip_address="127.0.0.1",
        node_name=name,
        num_cpus=int(cpus),
        memory=int(memory),
        object_store_memory=int(objects),
        min_worker_port=0,  # all nodes share the ports of one host
        max_worker_port=0,
        node_manager_port=0,
        dashboard_agent_listen_port=None,
        include_log_monitor=False,
        # By themselves, two nodes that start at the same time choose the same names.
        raylet_socket_name=str(Path.home() / f"{name}-raylet"),
        plasma_store_socket_name=str(Path.home() / f"{name}-store"),
        runtime_env_dir_name=name,  # a node deletes the folders of jobs here that it no longer uses
    )
    node = Node(parameters, head=False, shutdown_at_exit=True, spawn_reaper=False)
    while node.remaining_processes_alive():
        time.sleep(0.5)


if __name__ == "__main__":
    main()
