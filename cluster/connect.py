"""Connects this process to Ray: to the cluster of its job, to a head on this machine, or to a new private Ray."""

import logging
import os
import secrets
import socket
import sys
from pathlib import Path

from cluster import local_head, tokens
from manygate_guard import find_foreign_package
from pipeline.errors import UserError

log = logging.getLogger(__name__)


def connect(num_cpus: int | None = None) -> None:
    """Joins a Ray cluster, or starts a private Ray that ends with this process (about 5 seconds).

    The cluster is the one that RAY_ADDRESS names (Ray sets it inside its jobs), or else the head that was started on
    this machine with `python -m cluster.local_head start`. A second call changes nothing.

    Args:
        num_cpus: CPUs of a private Ray, by default all. Not used for an existing cluster.

    Raises:
        UserError: the cluster cannot be joined, or workers would import other packages in place of Manygate's.
    """
    if foreign := find_foreign_package(Path.cwd()):
        raise UserError(f"On Ray's workers, which look in the current folder first, {foreign}")
    head = local_head.running()
    address = os.environ.get("RAY_ADDRESS") or (head.address if head else "local")
    if address == "local" or (head is not None and address == head.address):
        keep_to_loopback()
        tokens.use_token()
    import ray

    from cluster.gauges import export_progress

    if ray.is_initialized():
        export_progress()
        return
    if address == "local":
        start_private_ray(num_cpus)
        outcome = "started one for this run"
    else:
        join_cluster(address)
        outcome = f"joined the cluster at {address}"
    export_progress()
    log.info("Ray: %s, with %d CPUs.", outcome, int(ray.cluster_resources().get("CPU", 0)))


def join_cluster(address: str) -> None:
    """Joins an existing cluster."""
    import ray

    advice = "To start a private Ray for this run, unset RAY_ADDRESS. `manygate doctor` checks the cluster."
    if address != "auto" and not reachable(address):
        raise UserError(f"Nothing answers at {address}, where the Ray cluster should be. {advice}")
    try:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        if "token" in f"{error} {error.__cause__}":
            raise UserError(
                f"The Ray cluster at {address} refused the token (from {tokens.source()}). "
                f"Set {tokens.MODE}=token, and {tokens.TOKEN} or {tokens.TOKEN_PATH} to the cluster's token."
            ) from error
        raise UserError(f"Cannot join the Ray cluster at {address}: {str(error).strip()}. {advice}") from error


def reachable(address: str) -> bool:
    """Whether a server listens at `host:port`, with or without a scheme. Ray itself needs over a minute to find out."""
    host, _, port = address.rpartition("://")[2].rstrip("/").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, ValueError):
        return False
    return True


def start_private_ray(num_cpus: int | None) -> None:
    """Starts a Ray that only this process uses."""
    import ray

    if os.environ.get(tokens.MODE) == "token" and tokens.find_token() is None:
        # Ray would write a token into the home folder, readable by every user. This token exists only in the process.
        os.environ[tokens.TOKEN] = secrets.token_hex(32)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Without an address, init() would join any head that is running on this machine.
    ray.init(
        address="local",
        num_cpus=num_cpus,
        # At the end of a run Ray Train asks the dashboard about its controller. Without a dashboard that takes 12 s.
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        logging_level=logging.WARNING,
        log_to_driver=False,  # workers' lines come through the driver channel; the rest is in Ray's log files
        _node_ip_address="127.0.0.1",
    )


def keep_to_loopback() -> None:
    """Makes Ray use 127.0.0.1 without replacing it, in this process and in the processes that it starts."""
    os.environ.update(local_head.LOOPBACK_ONLY)
    if "ray" in sys.modules:  # Ray has already read the variable
        from ray._private import ray_constants

        ray_constants.ENABLE_RAY_CLUSTER = False
