"""Conversion of labels to the training scale and back."""

import numpy as np
import pytest

from pipeline.config.logs import TaskConfig

VALUES = np.array([0.0, 1.0, 2.5, 1000.0])


@pytest.mark.parametrize(
    ("keys", "trained"),
    [
        ({"kind": "binary"}, VALUES),
        ({"kind": "continuous", "scale": 0.5}, VALUES / 2),
        ({"kind": "continuous", "max": 1000}, VALUES),
        ({"kind": "continuous", "scale": 2.0, "transform": "log1p"}, np.log([1, 3, 6, 2001])),
    ],
)
def test_labels_come_back_in_the_unit_of_the_log(keys: dict[str, object], trained: np.ndarray) -> None:
    task = TaskConfig.model_validate({"name": "t", "column": "t", **keys})
    scaled = task.to_training_scale(VALUES)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, trained, rtol=1e-6)
    np.testing.assert_allclose(task.to_log_unit(scaled), VALUES, rtol=1e-5)


def test_a_value_that_float32_cannot_hold_is_not_finite() -> None:
    task = TaskConfig(name="t", column="t", kind="continuous", scale=10.0)
    assert np.isinf(task.to_training_scale(np.array([1e38]))).all()


@pytest.mark.parametrize("keys", [{}, {"scale": 0.5}, {"scale": 2.0, "transform": "log1p"}])
def test_labels_above_max_become_max_in_the_unit_of_the_log(keys: dict[str, object]) -> None:
    task = TaskConfig.model_validate({"name": "t", "column": "t", "kind": "continuous", "max": 2.5, **keys})
    trained = task.to_training_scale(np.array([0.0, 2.5, 2.6, 1e300, np.nan]))
    np.testing.assert_allclose(task.to_log_unit(trained), [0.0, 2.5, 2.5, 2.5, np.nan], rtol=1e-6)
