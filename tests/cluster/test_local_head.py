"""A real head on this machine: jobs are submitted, followed and stopped, with its token and with a wrong one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import local_head
from pipeline.errors import UserError
from tests.tiny import EXPERIMENT

pytestmark = pytest.mark.ray

SEND_SLEEPER = """
import sys
from cluster.client import open_client
open_client(sys.argv[1]).submit_job(entrypoint="sleep 300", submission_id="sleeper")
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
            [sys.executable, *command], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60
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


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("project")
    (folder / "tiny.yaml").write_text(EXPERIMENT)
    state = folder / ".cluster" / "head.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            patch.delenv(name, raising=False)
        try:
            head = local_head.start(local_head.free_port(), local_head.free_port(), num_cpus=1, state=state)
            yield Cluster(folder, head)
        finally:
            stopped = local_head.stop(state)
    assert stopped is not None
    assert local_head.running(state) is None
    assert processes_of(stopped.folder) == []
    assert not Path(stopped.folder).exists()


def test_token_is_private(cluster: Cluster) -> None:
    assert (cluster.folder / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    assert Path(cluster.head.folder).stat().st_mode & 0o777 == 0o700


def test_listens_on_loopback_only(cluster: Cluster) -> None:
    port = int(cluster.head.address.rpartition(":")[2])
    kernel = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    rows = [line.split() for line in kernel.splitlines()]
    listening = {row[1].rpartition(":")[0] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"}
    assert listening <= {"0100007F", "0000000000000000FFFF00000100007F"}
    assert listening


def test_second_head_is_refused(cluster: Cluster) -> None:
    state = cluster.folder / ".cluster" / "head.json"
    with pytest.raises(UserError, match="already running"):
        local_head.start(local_head.free_port(), local_head.free_port(), state=state)
    taken = int(cluster.head.dashboard.rpartition(":")[2])
    with pytest.raises(UserError, match=f"Port {taken} is in use"):
        local_head.start(local_head.free_port(), taken, state=cluster.folder / "other.json")


def test_job_is_followed_and_keeps_its_exit_code(cluster: Cluster) -> None:
    sent = cluster.manygate("submit", "evaluate", "tiny.yaml", "training.epochs=2", "--follow")
    assert sent.returncode == 2, sent.stdout + sent.stderr
    assert "no finished feature table" in sent.stdout
    assert f"output={cluster.folder}/runs" in sent.stdout
    assert "Traceback" not in sent.stdout + sent.stderr

    listed = cluster.manygate("status")
    job = listed.stdout.split()[0]
    assert job.startswith("tiny-evaluate-")
    assert "FAILED" in listed.stdout
    assert "exit code 2" in cluster.manygate("status", job).stdout
    assert "no finished feature table" in cluster.manygate("logs", job).stdout


def test_running_job_is_stopped(cluster: Cluster) -> None:
    assert cluster.call("-c", SEND_SLEEPER, cluster.head.dashboard).returncode == 0
    stopped = cluster.manygate("stop", "sleeper")
    assert stopped.returncode == 0, stopped.stderr
    assert "STOPPED" in cluster.manygate("status", "sleeper").stdout


def test_wrong_token_is_reported(cluster: Cluster) -> None:
    refused = cluster.manygate("status", RAY_AUTH_TOKEN="not-the-token")
    assert refused.returncode == 2
    assert "the token from the variable RAY_AUTH_TOKEN was sent" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_unknown_job_is_reported(cluster: Cluster) -> None:
    unknown = cluster.manygate("logs", "nobody")
    assert unknown.returncode == 2
    assert "No job is called 'nobody'" in unknown.stderr
