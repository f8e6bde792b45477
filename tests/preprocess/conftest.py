"""What several tests of preprocessing share."""

from collections.abc import Iterator

import pytest

from pipeline.preprocess import commit, fit
from tests.old_runs.copies import one_after_the_other


@pytest.fixture(scope="module")
def without_ray() -> Iterator[None]:
    """Tasks run one after the other in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for stage in (fit, commit):
            patch.setattr(stage, "run_tasks", one_after_the_other)
        yield
