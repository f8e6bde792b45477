"""Fixtures that several folders share, and the tiers of tests: see "Tests" in CONTRIBUTING.md."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from tests.workers import WorkerPool

WHOLE_RUNS = Path(__file__).parent / "end_to_end"
MACHINES = Path(__file__).parent / "machines"
TIERS = ("ray", "whole_run", "machines")
# Words of commands that start Ray (its own programs), several workers, or a job.
HEAVY = {"raylet", "gcs_server", "torch.distributed.run", "preprocess", "train", "evaluate", "predict", "compare"}


hypothesis.settings.register_profile("manygate", deadline=None)  # a time decides no test
hypothesis.settings.load_profile("manygate")


@pytest.fixture(scope="session")
def two_workers() -> Iterator[WorkerPool]:
    pool = WorkerPool(2)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def four_workers() -> Iterator[WorkerPool]:
    pool = WorkerPool(4)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def ray_is_up() -> Iterator[None]:
    """A local Ray with two CPUs, which commands in this process join. Tests that use it are in the tier `ray`."""
    import ray

    from cluster.connect import keep_to_loopback, start_private_ray

    keep_to_loopback()
    start_private_ray(num_cpus=2)
    yield
    ray.shutdown()


def pytest_configure() -> None:
    torch.set_num_threads(1)  # models of tests are too small for more, and two processes of pytest share the machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if WHOLE_RUNS in item.path.parents:
            item.add_marker(pytest.mark.whole_run)
        if MACHINES in item.path.parents:
            item.add_marker(pytest.mark.machines)
        if "ray_is_up" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Tests of no tier, and the fixtures that they are first to use, start neither Ray nor a job."""
    with pytest.MonkeyPatch.context() as patch:
        if not any(item.get_closest_marker(tier) for tier in TIERS):
            patch.setattr(subprocess.Popen, "__init__", only_light_processes)
        return (yield)


start_process = subprocess.Popen.__init__


def only_light_processes(process: "subprocess.Popen[Any]", args: Any, *others: Any, **options: Any) -> None:
    words = [args] if isinstance(args, str) else [str(word) for word in args]
    if HEAVY & {Path(word).name for word in words}:
        pytest.fail(
            f"A test that starts {words[0]} must be marked: {', '.join(TIERS[:-1])} or {TIERS[-1]}.", pytrace=False
        )
    start_process(process, args, *others, **options)
