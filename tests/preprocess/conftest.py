"""One Ray of two CPUs for all tests of this folder."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_is_up() -> Iterator[None]:
    import ray

    from cluster.connect import keep_to_loopback, start_own

    if ray.is_initialized():
        yield
        return
    keep_to_loopback()
    start_own(num_cpus=2)
    yield
    ray.shutdown()
