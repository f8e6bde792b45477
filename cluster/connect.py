"""Connects this process to Ray: to the cluster of its job, to a head on this machine, or to a new private Ray."""

import atexit
import logging
import os
import secrets
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from cluster import local_head, tokens
from cluster.addresses import cluster_address, is_same, reachable, without_proxy
from cluster.ray_folder import delete_ray_folder, make_ray_folder, ray_files
from manygate_guard import find_foreign_package
from pipeline import machine
from pipeline.errors import UserError
from pipeline.sizes import in_bytes

log = logging.getLogger(__name__)


def connect(num_cpus: int | None = None) -> None:
    """Joins a Ray cluster, or starts a private Ray that ends with this process (about 5 seconds).

    The cluster is the one that RAY_ADDRESS names (Ray sets it inside its jobs), or else the head that was started on
    this machine with `python -m cluster.local_head start`. A second call changes nothing.

    Args:
        num_cpus: CPUs of a private Ray, by default all. Not used for an existing cluster.

    Raises:
        UserError: RAY_ADDRESS has another form, the cluster cannot be joined, or workers would import other packages in
            place of Manygate's.
    """
    if foreign := find_foreign_package(Path.cwd()):
        raise UserError(f"On Ray's workers, which look in the current folder first, {foreign}")
    head = local_head.running()
    named = os.environ.get("RAY_ADDRESS", "").strip()
    address = cluster_address(named) if named else head.address if head else "local"
    if address == "local" or (head is not None and is_same(address, head.address)):
        keep_to_loopback()
        tokens.use_token()
    import ray

    from cluster.gauges import export_progress

    if ray.is_initialized():
        export_progress()
        return
    handler = signal.getsignal(signal.SIGTERM)
    if address == "local":
        start_private_ray(num_cpus)
        outcome = "started one for this run"
    else:
        join_cluster(address)
        outcome = f"joined the cluster at {address}"
    keep_sigterm(handler)
    export_progress()
    log.info("Ray: %s, with %d CPUs.", outcome, int(ray.cluster_resources().get("CPU", 0)))


def keep_sigterm(handler: Any) -> None:
    """Gives SIGTERM back to the handler that this process had, or else to the one that Ray has set in Python.

    Ray also sets a native one, which prints the stack of the process and sometimes aborts it.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler if callable(handler) else signal.getsignal(signal.SIGTERM))


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


def start_private_ray(num_cpus: int | None) -> None:
    """Starts a Ray that only this process uses. Its folder is deleted when this process ends.

    If the user has set RAY_TMPDIR, Ray's files are there, readable for everyone, and they are kept.

    Raises:
        UserError: Ray does not start.
    """
    import ray

    if os.environ.get(tokens.MODE) == "token" and tokens.find_token() is None:
        # Ray would write a token into the home folder, readable by every user. This token exists only in the process.
        os.environ[tokens.TOKEN] = secrets.token_hex(32)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    kept = os.environ.get("RAY_TMPDIR")
    folder = Path(kept) if kept else make_ray_folder()
    if not kept:
        os.environ["TMPDIR"] = str(folder.parent)  # for Ray's processes: Python's own sockets are there
        atexit.register(end_private_ray, folder)  # already here: the start may be interrupted
    began = time.monotonic()
    try:
        # Without an address, init() would join any head that is running on this machine.
        ray.init(
            address="local",
            num_cpus=num_cpus,
            # At the end of a run Ray Train asks the dashboard about its controller. Without a dashboard it takes 12 s.
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            logging_level=logging.WARNING,
            log_to_driver=False,  # workers' lines come through the driver channel; the rest is in Ray's log files
            _node_ip_address="127.0.0.1",
            _temp_dir=str(ray_files(folder).absolute()),
        )
    except Exception as error:  # noqa: BLE001 - Ray raises an `Exception` when a part of it does not start in time
        atexit.unregister(end_private_ray)  # keeps the logs
        raise UserError(describe_failed_start(error, folder, time.monotonic() - began)) from error


def end_private_ray(folder: Path) -> None:
    import ray

    ray.shutdown()
    delete_ray_folder(folder)


def describe_failed_start(error: Exception, folder: Path, seconds: float) -> str:
    """What Ray reports, the resources that it may lack, and what to do."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"
    start = f"Ray did not start on this machine (after {seconds:.0f} s): {reason.rstrip('.')}."
    if "AF_UNIX" in reason:
        variable = "Unset RAY_TMPDIR, or set it" if os.environ.get("RAY_TMPDIR") else "Set TMPDIR"
        return f"{start} {variable} to a folder with a shorter path."
    if isinstance(error, OSError):
        return f"{start} Ray needs a folder that it may write to, with room: set TMPDIR, or RAY_TMPDIR if it is set."
    load, cpus = os.getloadavg()[0], machine.cpus().amount
    free = psutil.virtual_memory().available
    rooms = [f"{in_bytes(shutil.disk_usage(path).free)} free in {path}" for path in ("/dev/shm", str(folder))]  # noqa: S108
    return (
        f"{start} Now: {in_bytes(free)} of memory available, {', '.join(rooms)}, load {load:.0f} on {cpus} CPUs. If "
        "memory or room is short, free some, or in a container set a larger --shm-size; if the load is much higher "
        f"than the CPUs, wait until it is lower; then try again. Ray's logs: {ray_files(folder)}/session_latest/logs"
    )


def keep_to_loopback() -> None:
    """Makes Ray use 127.0.0.1 without replacing it, in this process and in the processes that it starts."""
    os.environ.update(local_head.LOOPBACK_ONLY | without_proxy("127.0.0.1"))
    if "ray" in sys.modules:  # Ray has already read the variable
        from ray._private import ray_constants

        ray_constants.ENABLE_RAY_CLUSTER = False
