"""A Ray head on this machine, for trying jobs as they run on a cluster.

    python -m cluster.local_head start|stop|status

It listens on the loopback interface only and requires a token. It stops only the head that it has started.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster import tokens
from cluster.addresses import without_proxy
from cluster.ray_folder import delete_ray_folder, make_ray_folder, ray_files
from pipeline.errors import UserError

HEAD_STATE = Path(__file__).resolve().parents[1] / ".cluster" / "head.json"
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 20
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Without it Ray replaces 127.0.0.1 with the machine's address and listens on every interface. Jobs need it too."""


@dataclass(frozen=True)
class Head:
    """A head that this module has started."""

    pid: int
    started: str
    """Start time of the process, from the kernel: shows whether the process id now belongs to another process."""
    address: str
    dashboard: str
    agent: str
    """Address to which the dashboard forwards its jobs."""
    folder: str
    """Folder of Ray's session and logs; only its owner can enter it."""


def running(state: Path | None = None) -> Head | None:
    """Returns the head that this module has started, if it is still running."""
    try:
        head = Head(**json.loads((state or HEAD_STATE).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return head if process_start(head.pid) == head.started else None


def start(port: int, dashboard_port: int, num_cpus: int | None = None, state: Path | None = None) -> Head:
    """Starts a head and waits until it accepts jobs.

    Raises:
        UserError: a head is already running, a port is in use, or Ray did not start.
    """
    state = state or HEAD_STATE
    if head := running(state):
        raise UserError(f"A head is already running at {head.dashboard}. To stop it: python -m cluster.local_head stop")
    for number, option in ((port, "--port"), (dashboard_port, "--port-dashboard")):
        if not is_free(number):
            raise UserError(f"Port {number} is in use. Choose another one: {option} {number + 1}")
    token = tokens.ensure_token()
    folder = make_ray_folder()
    log = folder / "head.log"
    agent_port = free_port()
    process = launch_head(ray_command(port, dashboard_port, agent_port, num_cpus, folder), log, folder.parent)
    head = Head(
        pid=process.pid,
        started=process_start(process.pid),
        address=f"127.0.0.1:{port}",
        dashboard=f"http://127.0.0.1:{dashboard_port}",
        agent=f"127.0.0.1:{agent_port}",
        folder=str(folder),
    )
    state.parent.mkdir(parents=True, exist_ok=True)
    state.write_text(json.dumps(asdict(head)))
    try:
        wait_until_up(head, process, token, log)
    except BaseException:
        stop(state)
        raise
    return head


def ray_command(port: int, dashboard_port: int, agent_port: int, num_cpus: int | None, folder: Path) -> list[str]:
    # A separate folder also keeps Ray from recording this head in /tmp/ray as the head of the machine.
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={ray_files(folder)}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"]
    # The default is a fixed port. If another Ray on this machine used it, no job would start.
    command += [f"--dashboard-agent-listen-port={agent_port}"]
    return command + ([f"--num-cpus={num_cpus}"] if num_cpus is not None else [])


def launch_head(command: list[str], log: Path, temporary: Path) -> subprocess.Popen[bytes]:
    """Starts Ray in a new session, with this interpreter's folder first on PATH, because jobs call plain `python`.

    Args:
        temporary: TMPDIR of Ray's processes: Python's own sockets are there.
    """
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    environment |= {tokens.MODE: "token", "RAY_USAGE_STATS_ENABLED": "0", "TMPDIR": str(temporary)}
    environment |= LOOPBACK_ONLY | without_proxy("127.0.0.1")
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    with log.open("wb") as stream:
        return subprocess.Popen(  # noqa: S603 - our own command
            command, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
        )


def wait_until_up(head: Head, process: subprocess.Popen[bytes], token: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        if answers(head, token) and not is_free(int(head.agent.rpartition(":")[2])):
            return
        time.sleep(0.2)
    end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise UserError(f"Ray did not start on this machine. The end of its log:\n{end}")


def answers(head: Head, token: str) -> bool:
    """Whether the head accepts requests with this token."""
    url, headers = f"{head.dashboard}/api/version", {"Authorization": f"Bearer {token}"}
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(urllib.request.Request(url, headers=headers), timeout=5) as response:  # noqa: S310
            return bool(response.status == 200)
    except OSError:
        return False


def stop(state: Path | None = None) -> Head | None:
    """Stops the head that this module has started, and its jobs. Returns None if no head is running."""
    state = state or HEAD_STATE
    head = running(state)
    if head is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(head.pid, signal.SIGTERM)
        wait_until_gone(head)
        delete_ray_folder(Path(head.folder))
    state.unlink(missing_ok=True)
    return head


def wait_until_gone(head: Head) -> None:
    """Waits until the head has ended, then kills the processes that are left in its process group."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while time.monotonic() < deadline and process_start(head.pid) == head.started:
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGKILL)


def process_start(pid: int) -> str:
    """Start time of a process, from the kernel; empty if the process is gone or a zombie."""
    try:
        # The second field is the name, in parentheses, and may contain blanks.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def describe_head(head: Head | None) -> str:
    if head is None:
        return "No head is running on this machine. To start one: python -m cluster.local_head start"
    return (
        f"Ray is running at {head.dashboard} (token: {tokens.source()}; logs: {head.folder})\n"
        f"Submit a job: manygate submit train EXPERIMENT --address {head.dashboard} --follow\n"
        "Stop it:      python -m cluster.local_head stop"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cluster.local_head", description="A Ray head on this machine.")
    parser.add_argument("action", choices=["start", "stop", "status"])
    parser.add_argument("--port", type=int, default=6379, help="port of Ray itself (default 6379)")
    parser.add_argument("--port-dashboard", type=int, default=8265, help="port that receives jobs (default 8265)")
    parser.add_argument("--num-cpus", type=int, default=None, help="CPUs to give to Ray (default all)")
    args = parser.parse_args(argv)
    try:
        if args.action == "start":
            print(describe_head(start(args.port, args.port_dashboard, args.num_cpus)))
        elif args.action == "stop":
            stopped = stop()
            print(f"Stopped Ray at {stopped.dashboard}." if stopped else "No head was running on this machine.")
        else:
            head = running()
            print(describe_head(head))
            return 0 if head else 1
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
