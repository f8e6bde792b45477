"""A project folder with a running head, and the programs that tests send to it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import local_head

SEND_SLEEPER = """
import sys
from cluster.client import open_client
open_client(sys.argv[1]).submit_job(entrypoint="sleep 300", submission_id="sleeper")
"""


SEND = """
import sys
from cluster.client import open_client
open_client(sys.argv[1]).submit_job(
    submission_id=sys.argv[2],
    entrypoint=sys.argv[3],
    runtime_env=eval(sys.argv[4]),
    entrypoint_num_cpus=int(sys.argv[5]),
)
"""

SEND_PACKAGE = """
import sys
from pathlib import Path
from cluster import submission
from cluster.client import open_client
from cluster.package import make_package
from jobs.submitted import watch

package, client = make_package(Path.cwd()), open_client(sys.argv[1])
files = {"PROBE_SECRET": sys.argv[3]} if len(sys.argv) > 3 else {}
sent = submission.Submission(submission.new_id("tiny", "probe"), sys.argv[2], package, {"LEVEL": "debug"}, files)
submission.send(client, sent)
code = watch(client, sent.id, client.get_address())
print("PACKAGE", sorted(package.files))
print("INFO", client.get_job_info(sent.id))
sys.exit(code)
"""

LIST = """
import os
from pathlib import Path

print("UNPACKED", sorted(str(file) for file in Path().rglob("*") if file.is_file() and file.suffix != ".pyc"))
print("LEVEL", os.environ["LEVEL"])
"""

PROBE = """
import hashlib
import os
import sys

from cluster.connect import connect
from pipeline.preprocess.tasks import run_tasks
from pipeline.errors import UserError
from pipeline.secret_files import read_secrets
from pipeline.config.load import load_experiment
from pipeline.workers.launch import Launcher


def seen():
    return hashlib.sha256(os.environ.get("PROBE_SECRET", "").encode()).hexdigest()


def in_task(item, shared):
    return {"seen": seen()}


def in_worker(worker, experiment):
    return seen()


if __name__ == "__main__":
    import probe

    connect()
    try:
        print("task", next(iter(run_tasks(probe.in_task, [{}], None))).result["seen"])
        experiment = load_experiment("tiny.yaml", [f"output={sys.argv[1]}"])
        print("worker", Launcher("ray", 1, connect).run(probe.in_worker, experiment))
        read_secrets()
        print("driver", seen())
    except UserError as error:
        print("refused:", error)
"""


HOLD = """
import sys
import time
from pathlib import Path

from cluster.connect import connect

connect()
import ray

ray.get(ray.remote(Path.touch).remote(Path(sys.argv[1]).absolute()))
time.sleep(300)
"""


class Cluster:
    """A running head, and a project folder that is also the home folder, which contains the token."""

    def __init__(self, folder: Path, head: local_head.Head):
        self.folder, self.head = folder, head

    def call(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HOME": str(self.folder), "RAY_AUTH_MODE": "token", **variables}
        # A variable with another address must not override --address.
        environment["RAY_ADDRESS"] = "127.0.0.1:1"
        return subprocess.run(
            [sys.executable, *command], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=120
        )

    def manygate(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.call("-m", "jobs.cli", *arguments, "--address", self.head.dashboard, **variables)


def processes_of(folder: str) -> list[str]:
    """Command lines of processes that contain a head's folder."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if folder in line:
            lines.append(line)
    return lines


@contextmanager
def job_of_a_worker(cluster: "Cluster", name: str) -> Iterator[None]:
    """A job that has joined Ray and has a worker; it is stopped at the end."""
    send(cluster, name, f"cd {cluster.folder} && python hold.py {name}.txt")
    while not (cluster.folder / f"{name}.txt").exists():
        state = cluster.manygate("status", name).stdout
        assert "FAILED" not in state, cluster.manygate("logs", name).stdout
    try:
        yield
    finally:
        cluster.manygate("stop", name)


def send(cluster: Cluster, name: str, command: str, environment: str = "{}", cpus: str = "0") -> None:
    answer = cluster.call("-c", SEND, cluster.head.dashboard, name, command, environment, cpus)
    assert answer.returncode == 0, answer.stderr
