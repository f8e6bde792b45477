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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
