"""Joining a Ray cluster or starting a private Ray as a job does, in a separate process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.connect import connect as connect_here
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
"""


def connect(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    hidden = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HOME": str(folder), **variables}
    return subprocess.run(
        [sys.executable, "-c", CONNECT], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


def test_without_a_cluster_a_private_ray_is_started(tmp_path: Path) -> None:
    done = connect(tmp_path)
    assert done.returncode == 0, done.stderr
    module, address = done.stdout.split()
    assert module == "models"
    assert address.startswith("127.0.0.1:")
    assert done.stderr.count("Ray: started one for this run, with 1 CPUs.") == 1
    assert not (tmp_path / ".ray").exists()  # no token has been written


def test_cluster_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    done = connect(tmp_path, RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.strip().startswith("Nothing answers at 127.0.0.1:1")


def test_foreign_package_in_the_current_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"On Ray's workers, .* another package named 'models' .* {tmp_path}/models"):
        connect_here()
