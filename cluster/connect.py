"""One call that puts this process in touch with Ray, wherever it runs."""

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
    """Joins the cluster of this job, or starts a Ray of our own that ends with this process (about 5 seconds).

    The cluster is the one that RAY_ADDRESS names (Ray sets it inside its jobs), else a head that was started here with
    `python -m cluster.local_head start`. A second call changes nothing.

    Args:
        num_cpus: CPUs of a Ray of our own, all by default; a cluster that is there has what it has.

    Raises:
        UserError: the cluster cannot be joined, or workers would import other packages than ours.
    """
    if foreign := find_foreign_package(Path.cwd()):
        raise UserError(f"On Ray's workers, which look in the current folder first, {foreign}")
    head = local_head.running()
    address = os.environ.get("RAY_ADDRESS") or (head.address if head else "local")
    if address == "local" or (head is not None and address == head.address):
        keep_to_loopback()
        tokens.use_token()
    import ray

    if ray.is_initialized():
        return
    if address == "local":
        start_own(num_cpus)
        done = "started one for this run"
    else:
        join_cluster(address)
        done = f"joined the cluster at {address}"
    log.info("Ray: %s, with %d CPUs.", done, int(ray.cluster_resources().get("CPU", 0)))


def join_cluster(address: str) -> None:
    """Joins a cluster that is there."""
    import ray

    advice = "Unset RAY_ADDRESS to start a Ray for this run alone; `manygate doctor` tells about the cluster."
    if address != "auto" and not reachable(address):
        raise UserError(f"Nothing answers at {address}, where the Ray cluster should be. {advice}")
    try:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        if "token" in f"{error} {error.__cause__}":
            raise UserError(
                f"The Ray cluster at {address} refuses the token (from {tokens.source()}). "
                f"Set {tokens.MODE}=token, and {tokens.TOKEN} or {tokens.TOKEN_PATH} to the cluster's own token."
            ) from error
        raise UserError(f"Cannot join the Ray cluster at {address}: {str(error).strip()}. {advice}") from error


def reachable(address: str) -> bool:
    """Whether something listens at `host:port`, with or without a scheme: Ray itself takes over a minute to tell."""
    host, _, port = address.rpartition("://")[2].rstrip("/").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, ValueError):
        return False
    return True


def start_own(num_cpus: int | None) -> None:
    """Starts a Ray that only this process uses."""
    import ray

    if os.environ.get(tokens.MODE) == "token" and tokens.find_token() is None:
        # Ray would leave a token in the home folder for every user to read; this one ends with the process.
        os.environ[tokens.TOKEN] = secrets.token_hex(32)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # "local", because a bare init() would look for a head that anybody left running on this machine.
    ray.init(
        address="local",
        num_cpus=num_cpus,
        # Ray Train asks it, at the end of a run, whether its controller lives: without, that takes 12 s to time out.
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        logging_level=logging.WARNING,
        log_to_driver=False,  # workers' lines come through the driver channel, the rest is in Ray's log files
        _node_ip_address="127.0.0.1",
    )


def keep_to_loopback() -> None:
    """Makes Ray take 127.0.0.1 as it stands, in this process and in those that it starts."""
    os.environ.update(local_head.LOOPBACK_ONLY)
    if "ray" in sys.modules:  # it has read the variable already
        from ray._private import ray_constants

        ray_constants.ENABLE_RAY_CLUSTER = False
