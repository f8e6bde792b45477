"""Joining a Ray cluster or starting a private Ray as a job does, in a separate process."""

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cluster import ray_folder
from cluster.connect import connect as connect_here
from cluster.ray_folder import NAME
from pipeline.errors import UserError

pytestmark = pytest.mark.ray

CONNECT = """
import logging, sys
from pathlib import Path
logging.basicConfig(level=logging.INFO, format="%(message)s")
from cluster import local_head
local_head.HEAD_STATE = Path("no-head.json")
from pipeline.errors import UserError
try:
    from cluster.connect import connect
    connect(1)
    connect(1)
except UserError as error:
    sys.exit(str(error))
import ray
print(ray.get(ray.remote(lambda: __import__("models.build").__name__).remote()))
print(ray.get_runtime_context().gcs_address)
folder = Path(ray.get_runtime_context().get_temp_dir()).parent
print(folder, oct(folder.stat().st_mode & 0o777))
"""


def connect(folder: Path, limit: int | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Connects in a process with these variables and at most so many bytes of address space."""
    hidden = ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HOME": str(folder), **variables}

    def restrict() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    command = [sys.executable, "-c", CONNECT]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, preexec_fn=restrict
    )


def test_without_a_cluster_a_private_ray_is_started(tmp_path: Path) -> None:
    done = connect(tmp_path)
    assert done.returncode == 0, done.stderr
    module, address, *_ = done.stdout.split()
    assert module == "models"
    assert address.startswith("127.0.0.1:")
    assert done.stderr.count("Ray: started one for this run, with 1 CPUs.") == 1
    assert not (tmp_path / ".ray").exists()  # no token has been written


def test_cluster_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    done = connect(tmp_path, RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.strip().startswith("Nothing answers at 127.0.0.1:1")


def test_an_address_of_another_form_is_one_sentence(tmp_path: Path) -> None:
    """As people set it for Ray's own command line."""
    done = connect(tmp_path, RAY_ADDRESS="http://127.0.0.1:8265")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "RAY_ADDRESS is http://127.0.0.1:8265, the address of a dashboard: expected 127.0.0.1:6379" in done.stderr


def test_foreign_package_in_the_current_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"On Ray's workers, .* another package named 'models' .* {tmp_path}/models"):
        connect_here()


def folders_of_ray(parent: Path) -> list[Path]:
    return list(parent.glob(f"{NAME}*"))


def test_the_folder_of_a_private_ray_is_private_and_is_deleted(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as short:
        done = connect(tmp_path, TMPDIR=short)
        assert done.returncode == 0, done.stderr
        folder, mode = done.stdout.split()[2:]
        assert Path(folder).parent == Path(short) and mode == "0o700"
        assert folders_of_ray(Path(short)) == []


def test_a_long_tmpdir_is_not_used_for_sockets(tmp_path: Path) -> None:
    """As batch systems set it: Ray's sockets, and those that Python makes in Ray's processes, need short paths."""
    long = tmp_path / "slurm_jobdir/1355700/user-with-a-long-name" / ("x" * 60)
    long.mkdir(parents=True)
    done = connect(tmp_path, TMPDIR=str(long))
    assert done.returncode == 0, done.stderr
    folder, mode = done.stdout.split()[2:]
    assert Path(folder).parent == Path("/tmp") and mode == "0o700" and not Path(folder).exists()


def test_a_long_ray_tmpdir_is_one_sentence_whose_advice_works(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    done = connect(tmp_path, RAY_TMPDIR=str(long))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "AF_UNIX path length cannot exceed 107 bytes" in done.stderr
    assert "Unset RAY_TMPDIR, or set it to a folder with a shorter path." in done.stderr
    with tempfile.TemporaryDirectory() as short:
        done = connect(tmp_path, RAY_TMPDIR=short)
        assert done.returncode == 0, done.stderr
        assert list(Path(short).glob("ray/session_*/logs"))  # the user's own folder: kept


def test_a_ray_tmpdir_that_is_no_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = connect(tmp_path, RAY_TMPDIR=f"{tmp_path}/file")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "Not a directory" in done.stderr and "set TMPDIR, or RAY_TMPDIR if it is set." in done.stderr


def test_ray_that_cannot_start_is_one_sentence_with_its_logs(tmp_path: Path) -> None:
    """Its raylet gets too little address space for the object store; Ray waits half a minute for it."""
    with tempfile.TemporaryDirectory() as short:
        done = connect(tmp_path, limit=3 * 2**30, TMPDIR=short)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        sentence = (
            r"Ray did not start on this machine \(after \d+ s\): .*\. Now: [\d.]+ [KMGT]iB of memory available, "
            r"[\d.]+ \w+ free in /dev/shm, .*, load \d+ on \d+ CPUs\. .*try again\. Ray's logs: (\S+)$"
        )
        match = re.search(sentence, done.stderr.strip())
        assert match, done.stderr
        assert "raylet" in " ".join(file.name for file in Path(match[1]).iterdir())
        while any(short in command for command in commands_of_all_processes()):  # Ray's processes end by themselves
            time.sleep(0.2)


def commands_of_all_processes() -> list[str]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # the process has ended meanwhile
            found.append(file.read_text(errors="replace"))
    return found


@pytest.mark.parametrize("own", [True, False])
def test_sigterm_reaches_the_handler_of_this_process_or_ends_it(own: bool, tmp_path: Path) -> None:
    """While it waits for Ray, too; and without the stack trace of Ray's native handler, which sometimes aborts."""
    code = CONNECT + (
        "import os, signal, threading\n"
        "threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()\n"
        "forever = ray.remote(lambda: __import__('threading').Event().wait())\n"
        "ray.wait([forever.remote()])\n"
    )
    if own:
        code = "import os, signal\nsignal.signal(signal.SIGTERM, lambda *_: os._exit(75))\n" + code
    environment = {**os.environ, "HOME": str(tmp_path), "RAY_ADDRESS": "local"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "Ray: started" in done.stderr and "SIGTERM received" not in done.stdout + done.stderr
    assert done.returncode == 75 if own else done.returncode in (1, signal.SIGTERM)


def test_no_folder_for_ray_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    monkeypatch.setattr(ray_folder, "FALLBACK", f"{tmp_path}/none")
    with pytest.raises(UserError, match=f"none can be made in {tmp_path}/none .*No such file.* at most 20 bytes"):
        ray_folder.make_ray_folder()


def test_an_interrupted_start_leaves_no_folder(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as short:
        environment = {**os.environ, "HOME": str(tmp_path), "TMPDIR": short, "RAY_ADDRESS": "local"}
        environment.pop("RAY_TMPDIR", None)
        process = subprocess.Popen([sys.executable, "-c", CONNECT], cwd=tmp_path, env=environment)
        while not folders_of_ray(Path(short)):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
        assert folders_of_ray(Path(short)) == []
