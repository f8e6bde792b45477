"""A real head on this machine: jobs are submitted, followed and stopped, with its token and with a wrong one."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster import local_head
from manygate_guard import PACKAGES
from pipeline.errors import UserError
from tests.cluster.head import (
    HOLD,
    LIST,
    PROBE,
    SEND_PACKAGE,
    SEND_SLEEPER,
    Cluster,
    job_of_a_worker,
    processes_of,
    send,
)
from tests.ports import is_on_loopback, listening, needs_ss, process_tree
from tests.tiny import EXPERIMENT

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("project")
    (folder / "tiny.yaml").write_text(EXPERIMENT)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "manygate_guard.py", folder)
    (folder / "list_files.py").write_text(LIST)
    (folder / "probe.py").write_text(PROBE)
    (folder / "hold.py").write_text(HOLD)
    state = folder / ".cluster" / "head.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "no_proxy", "NO_PROXY"):
            patch.delenv(name, raising=False)
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            patch.setenv(name, "http://127.0.0.1:1")  # which does not answer: nothing of ours may use it
        try:
            head = local_head.start(local_head.free_port(), local_head.free_port(), num_cpus=1, state=state)
            yield Cluster(folder, head)
        finally:
            local_head.stop(state)
    assert local_head.running(state) is None
    assert processes_of(head.folder) == []
    assert not Path(head.folder).exists()


def test_token_is_private(cluster: Cluster) -> None:
    assert (cluster.folder / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    assert Path(cluster.head.folder).stat().st_mode & 0o777 == 0o700


@needs_ss
def test_listens_on_loopback_only(cluster: Cluster) -> None:
    with job_of_a_worker(cluster, "ports"):
        found = listening(cluster.head.pid)
    assert [(address, command) for address, command in found if not is_on_loopback(address)] == []
    for part in ("gcs_server", "raylet", "dashboard.py", "ray::DashboardAgent", "ray.util.client.server", "hold.py"):
        assert any(part in command for _, command in found), (part, found)


def test_token_is_in_no_output_no_log_and_no_argument(cluster: Cluster) -> None:
    token = (cluster.folder / ".ray/auth_token").read_text()
    assert len(token) == 64
    with job_of_a_worker(cluster, "held"):
        commands = process_tree(cluster.head.pid)
        answers = [
            cluster.call("-m", "cluster.local_head", "status"),
            cluster.call("-m", "cluster.local_head", "start"),  # refused: a head is running
            cluster.manygate("status", "held"),
            cluster.manygate("status"),
        ]
    sent = cluster.manygate("submit", "evaluate", "tiny.yaml", "--follow")
    answers += [sent, cluster.manygate("logs", "held"), cluster.manygate("status", RAY_AUTH_TOKEN=token[::-1])]
    assert cluster.head.dashboard in answers[0].stdout and "already running" in answers[1].stderr
    assert "SUCCEEDED" not in answers[2].stdout and "no finished feature table" in sent.stdout
    texts = [answer.stdout + answer.stderr for answer in answers]
    assert not [text for text in texts if token in text or token[::-1] in text]
    assert any("hold.py" in command for command in commands.values())
    assert not [command for command in commands.values() if token in command]
    logs = [path for path in Path(cluster.head.folder).rglob("*") if path.is_file() and "logs" in path.parts]
    logs.append(Path(cluster.head.folder) / "head.log")
    assert len(logs) > 10 and not [path for path in logs if token.encode() in path.read_bytes()]


@pytest.mark.parametrize("form", ["localhost:{}", "127.0.0.1:{}/", "http://localhost:{}/#/jobs", "HTTP://LOCALHOST:{}"])
def test_each_form_of_its_address_works(cluster: Cluster, form: str) -> None:
    """Also without RAY_AUTH_MODE: the local head gets its token in each of them."""
    address = form.format(cluster.head.dashboard.rpartition(":")[2])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "jobs.cli", "status", "--address", address]
    answer = subprocess.run(command, cwd=cluster.folder, env=environment, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0 and f"jobs at {cluster.head.dashboard}" in answer.stderr, answer.stderr


def test_a_head_behind_a_path_is_used_through_it(cluster: Cluster) -> None:
    """As behind an ingress that passes on /team/ray/... as /..."""
    with ingress("/team/ray", cluster.head.dashboard) as url:
        answer = cluster.call("-m", "jobs.cli", "status", "--address", f"{url}/team/ray/#/jobs")
        assert answer.returncode == 0 and f"jobs at {url}/team/ray" in answer.stderr, answer.stderr
        answer = cluster.call("-m", "jobs.cli", "status", "--address", f"{url}/other")
        assert answer.returncode == 2 and f"{url}/other is not a Ray dashboard" in answer.stderr


@contextmanager
def ingress(prefix: str, dashboard: str) -> Iterator[str]:
    class PassOn(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith(prefix):
                self.send_error(404)
                return
            headers = {"Authorization": self.headers["Authorization"]}
            request = urllib.request.Request(dashboard + self.path.removeprefix(prefix), headers=headers)
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as response:
                body = response.read()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), PassOn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


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
    job = listed.stdout.splitlines()[-1].split()[0]  # the newest
    assert job.startswith("tiny-evaluate-")
    assert "FAILED" in listed.stdout
    assert "exit code 2" in cluster.manygate("status", job).stdout
    assert "no finished feature table" in cluster.manygate("logs", job).stdout


def test_running_job_is_stopped(cluster: Cluster) -> None:
    assert cluster.call("-c", SEND_SLEEPER, cluster.head.dashboard).returncode == 0
    while "RUNNING" not in cluster.manygate("status", "sleeper").stdout:
        time.sleep(0.2)
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


def test_what_ray_unpacks_is_the_list(cluster: Cluster) -> None:
    """Also files that Ray's own rules would leave out, and none that it would add."""
    private = (".env", ".ssh/id_rsa", ".aws/credentials", "keys/server.pem", "sub/credentials.json")
    for name in (*private, "sub/kept.log", "sub/b/empty.txt", ".hidden", "node_modules/x.js"):
        (cluster.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (cluster.folder / name).write_text("")
    (cluster.folder / ".rayignore").write_text("kept.log")
    (cluster.folder / "sub/.gitignore").write_text("kept.log")  # outside a repository git ignores nothing
    sent = cluster.call("-c", SEND_PACKAGE, cluster.head.dashboard, "python list_files.py")
    assert sent.returncode == 0, sent.stdout + sent.stderr
    lists = dict(line.split(" ", 1) for line in sent.stdout.splitlines() if " " in line)
    assert lists["UNPACKED"] == lists["PACKAGE"] and lists["LEVEL"] == "debug"
    for name in ("sub/kept.log", "sub/b/empty.txt", ".hidden", "node_modules/x.js", "jobs/cli.py"):
        assert f"'{name}'" in lists["UNPACKED"]
    assert not any(f"'{name}'" in lists["UNPACKED"] for name in (*private, ".ray/auth_token"))


def test_a_secret_reaches_every_process_and_nothing_else(cluster: Cluster, tmp_path: Path) -> None:
    value, file = "hush-hush-5150", tmp_path / "secret"
    file.write_text(value + "\n")
    arguments = (cluster.head.dashboard, f"python probe.py {tmp_path}/scratch")
    sent = cluster.call("-c", SEND_PACKAGE, *arguments, str(file))
    expected = hashlib.sha256(value.encode()).hexdigest()
    for process in ("driver", "task", "worker"):
        assert f"{process} {expected}" in sent.stdout, sent.stdout + sent.stderr
    assert str(file) in sent.stdout and value not in sent.stdout + sent.stderr
    logs = [path for path in Path(cluster.head.folder).rglob("*") if path.is_file() and "logs" in path.parts]
    assert logs and not [path for path in logs if value.encode() in path.read_bytes()]


def test_a_secret_that_is_missing_is_one_sentence(cluster: Cluster, tmp_path: Path) -> None:
    sentence = f"The secret PROBE_SECRET cannot be read from {tmp_path}/none on "
    arguments = (cluster.head.dashboard, f"python probe.py {tmp_path}/scratch")
    sent = cluster.call("-c", SEND_PACKAGE, *arguments, f"{tmp_path}/none")
    assert f"refused: {sentence}" in sent.stdout and "Traceback" not in sent.stdout + sent.stderr
    flags = ("--secret", f"PROBE_SECRET={tmp_path}/none", "--follow")
    sent = cluster.manygate("submit", "evaluate", "tiny.yaml", *flags)
    assert sent.returncode == 2 and f"manygate: {sentence}" in sent.stdout, sent.stdout + sent.stderr


def test_a_job_that_could_not_be_set_up_is_one_sentence(cluster: Cluster) -> None:
    send(cluster, "no-package", "true", "{'working_dir': 'gcs://_ray_pkg_0000.zip'}")
    followed = cluster.manygate("logs", "no-package", "--follow")
    assert followed.returncode == 1
    assert "The cluster could not set up the job's folder and environment" in followed.stderr
    assert "could not set up" in cluster.manygate("status", "no-package").stdout


def test_a_job_that_was_killed_is_one_sentence(cluster: Cluster) -> None:
    send(cluster, "killed", "sh -c 'kill -9 $$'")
    followed = cluster.manygate("logs", "killed", "--follow")
    assert followed.returncode != 0 and "was killed by SIGKILL" in followed.stderr
    assert "was killed by SIGKILL" in " ".join(cluster.manygate("status", "killed").stdout.split())


def test_a_job_that_does_not_start_is_reported_and_an_interrupt_detaches(cluster: Cluster, tmp_path: Path) -> None:
    send(cluster, "waiting", "true", cpus="99")
    follow = "import sys, cluster.client as c; c.WAITING_REPORT_S = 0.1; from jobs import cli; sys.exit(cli.main())"
    command = [sys.executable, "-c", follow, "logs", "waiting", "--follow", "--address", cluster.head.dashboard]
    environment = {**os.environ, "HOME": str(cluster.folder), "RAY_AUTH_MODE": "token"}
    printed = tmp_path / "printed.txt"
    with printed.open("w") as stream:
        process = subprocess.Popen(command, cwd=cluster.folder, env=environment, stderr=stream)
    while "waiting has not started after" not in printed.read_text():
        assert process.poll() is None, printed.read_text()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "waiting is still running. To watch it again: manygate logs waiting" in printed.read_text()
    assert "PENDING" in cluster.manygate("status", "waiting").stdout
    stopped = cluster.manygate("stop", "waiting")
    assert stopped.returncode == 0 and "waiting has not started: it stops at once if it starts" in stopped.stderr


def test_a_head_that_dies_while_a_job_is_followed_is_one_sentence(cluster: Cluster, tmp_path: Path) -> None:
    """The last test: the head is gone afterwards."""
    send(cluster, "followed", "echo started; sleep 300")
    environment = {**os.environ, "HOME": str(cluster.folder), "RAY_AUTH_MODE": "token"}
    command = [sys.executable, "-m", "jobs.cli", "logs", "followed", "--follow", "--address", cluster.head.dashboard]
    printed = tmp_path / "printed.txt"
    with printed.open("w") as stream:
        process = subprocess.Popen(command, cwd=cluster.folder, env=environment, stderr=stream, stdout=stream)
    while "started" not in printed.read_text():
        assert process.poll() is None, printed.read_text()
        time.sleep(0.1)
    assert local_head.stop(cluster.folder / ".cluster/head.json") is not None
    assert process.wait(120) == 2
    assert "cannot be reached any more, so the log of followed ends here" in printed.read_text()
    assert "Traceback" not in printed.read_text()
