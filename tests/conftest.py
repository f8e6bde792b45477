"""Fixtures that several folders share."""

from collections.abc import Iterator

import pytest
import torch

from tests.workers import WorkerPool


@pytest.fixture(scope="session")
def two_workers() -> Iterator[WorkerPool]:
    pool = WorkerPool(2)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def ray_is_up() -> Iterator[None]:
    """One Ray of two CPUs for all tests that preprocess."""
    import ray

    from cluster.connect import keep_to_loopback, start_own

    if ray.is_initialized():
        yield
        return
    keep_to_loopback()
    start_own(num_cpus=2)
    yield
    ray.shutdown()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
