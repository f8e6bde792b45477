"""What is not marked is quick to run: it starts neither Ray nor a job."""

import subprocess
import sys
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

REFUSED = "must be marked: ray, whole_run or machines"


def test_a_test_without_mark_cannot_start_ray() -> None:
    """Started as ray.init does it, but also where the tests before this one have left a Ray running."""
    with pytest.raises(pytest.fail.Exception, match=f"gcs_server {REFUSED}"):
        Cluster(initialize_head=True, head_node_args={"num_cpus": 1})


@pytest.mark.parametrize("command", [["-m", "jobs.cli", "train", "x.yaml"], ["-m", "torch.distributed.run", "x.py"]])
def test_a_test_without_mark_cannot_start_a_job(command: list[str]) -> None:
    with pytest.raises(pytest.fail.Exception, match=REFUSED):
        subprocess.run([sys.executable, *command])


def test_all_else_can_be_started() -> None:
    assert subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True, text=True).stdout == "1\n"


def test_the_folder_of_whole_runs_and_ray_give_the_mark(request: pytest.FixtureRequest) -> None:
    """The session has marked what it collected, this test not."""
    for item in request.session.items:
        marks = {mark.name for mark in item.iter_markers()}
        folders = Path(item.path).relative_to(Path(__file__).parent).parts
        assert ("whole_run" in marks) >= ("end_to_end" in folders), item.nodeid
        assert ("machines" in marks) >= ("machines" in folders), item.nodeid
        assert ("ray" in marks) >= ("ray_is_up" in item.fixturenames), item.nodeid
    assert not {"ray", "whole_run", "machines"} & {mark.name for mark in request.node.iter_markers()}
