"""Learning rates that jump at a resume are reported, with advice that holds; others are not."""

import logging
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint.progress import Progress, TrainingWindow
from pipeline.config.experiment import Experiment
from pipeline.config.load import apply_override, parse_experiment
from pipeline.config.training import TrainingConfig
from pipeline.loading.position import Position
from pipeline.sharding.optimizers import schedule_factor
from pipeline.training.rate_jump import describe_jump
from tests import synthetic
from tests.training.runs import continued, metrics, new_run, run_on
from tests.workers import one_worker

COSINE: dict[str, Any] = {"epochs": 2, "schedule": {"decay": "cosine"}, "log_every_steps": 1}
STEPS = 12  # per epoch of the synthetic table


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    experiment = new_run(tmp_path_factory.mktemp("finished"), training=COSINE, checkpoint={"keep_last": 100})
    train(experiment)
    return experiment


def train(experiment: Experiment) -> str:
    with one_worker() as worker:
        return run_on(worker, experiment)


def resumed(before: Experiment, folder: Path, step: int, **training: Any) -> Experiment:
    """Resumes a copy of a run, with other keys of `training`."""
    after = continued(before, folder, step, training={**COSINE, **training}, checkpoint={"keep_last": 100})
    train(after)
    return after


def rates(experiment: Experiment) -> dict[int, dict[str, float]]:
    """The rates that each step used, from metrics.jsonl."""
    factors = {r["step"]: r["learning_rate_factor"] for r in metrics(experiment) if r["kind"] == "train"}
    training = experiment.training
    return {
        step: {"sparse": factor * training.sparse_optimizer.lr, "dense": factor * training.dense_optimizer.lr}
        for step, factor in factors.items()
    }


def test_more_epochs_after_a_finished_schedule(
    finished: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "pipeline"):
        longer = resumed(finished, tmp_path / "longer", 2 * STEPS, epochs=4)
    (warning,) = [record.getMessage() for record in caplog.records if "learning rates jump" in record.getMessage()]
    assert warning.startswith(f"The learning rates jump at step {2 * STEPS + 1}: ")
    assert "because of training.epochs: 2 -> 4. The schedule now ends at step 48, and ended at step 24." in warning
    before, after = rates(finished)[2 * STEPS], rates(longer)[2 * STEPS + 1]
    shown = {name: (float(a), float(b)) for name, a, b in re.findall(r"(\w+) ([\d.e-]+) -> ([\d.e-]+)[,;]", warning)}
    assert shown.keys() == {"sparse", "dense"}
    for name, (old, new) in shown.items():
        assert old == pytest.approx(before[name], rel=0.01) and new == pytest.approx(after[name], rel=0.01)
        assert new > 10 * old
    caplog.clear()
    training = continue_at_last_rates(warning, {**COSINE, "epochs": 4})
    with caplog.at_level(logging.INFO, "pipeline"):
        same = resumed(finished, tmp_path / "same", 2 * STEPS, **training)
    assert not [record for record in caplog.records if "learning rates jump" in record.getMessage()], "the advice holds"
    for name, rate in rates(same)[2 * STEPS + 1].items():
        assert rate == pytest.approx(before[name], rel=0.01)

    caplog.clear()
    with caplog.at_level(logging.INFO, "pipeline"):
        resumed(longer, tmp_path / "shorter", 4 * STEPS, epochs=3)
    assert "Training finished at step 48; the experiment asks for 36 only." in caplog.text
    assert not [record for record in caplog.records if "learning rates jump" in record.getMessage()]


def continue_at_last_rates(warning: str, training: dict[str, Any]) -> dict[str, Any]:
    """The keys of `training` after following the advice of a warning."""
    data: dict[str, Any] = {"training": deepcopy(training)}
    for override in warning.partition("To continue at the last rates: ")[2].split():
        apply_override(data, override)
    found: dict[str, Any] = data["training"]
    return found


CHANGES: dict[str, tuple[dict[str, Any], bool]] = {
    "nothing": ({}, False),
    "keys that decide no rate": ({"clip_norm": 1.0, "validate_every_steps": 3}, False),
    "more epochs in the middle": ({"epochs": 8}, True),
    "fewer epochs": ({"epochs": 1}, False),  # the run is over
    "a limit of steps": ({"max_steps": 20}, True),
    "a warm-up that is still on": ({"schedule": {"decay": "cosine", "warmup_steps": 100}}, True),
    "a warm-up that would have been over": ({"schedule": {"decay": "cosine", "warmup_steps": 1}}, False),
    "another decay": ({"schedule": {"decay": "constant"}}, True),
    "another end": ({"schedule": {"decay": "cosine", "final": 0.9}}, True),
    "another dense rate": ({"dense_optimizer": {"lr": 0.1}}, True),
    "another sparse rate": ({"sparse_optimizer": {"lr": 0.001}}, True),
    "a slightly other rate": ({"dense_optimizer": {"lr": 0.00101}}, False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_in_the_middle_of_a_run(change: str) -> None:
    """At step 16 of 24, where a cosine is at a quarter."""
    keys, is_jump = CHANGES[change]
    progress = Progress(TrainingWindow({}, STEPS), step=16, position=Position(1, 4))
    saved, training = (TrainingConfig.model_validate({**COSINE, **more}) for more in ({}, keys))
    sentence = describe_jump(saved, training, progress)
    assert (sentence is not None) == is_jump, sentence
    if sentence is not None:
        advised = TrainingConfig.model_validate(continue_at_last_rates(sentence, {**COSINE, **keys}))
        assert describe_jump(saved, advised, progress) is None


settings = st.fixed_dictionaries(
    {
        "epochs": st.integers(1, 4),
        "max_steps": st.none() | st.integers(1, 50),
        "dense_optimizer": st.fixed_dictionaries({"lr": st.floats(1e-5, 1)}),
        "sparse_optimizer": st.fixed_dictionaries({"lr": st.floats(1e-5, 1)}),
        "schedule": st.fixed_dictionaries(
            {
                "warmup_steps": st.integers(0, 30),
                "decay": st.sampled_from(["constant", "linear", "cosine"]),
                "final": st.floats(0, 1),
            }
        ),
    }
).map(TrainingConfig.model_validate)


@given(settings, settings, st.integers(1, 60), st.integers(0, 100))
def test_a_jump_is_reported_exactly_where_rates_leave_their_schedule(
    saved: TrainingConfig, training: TrainingConfig, step: int, first: int
) -> None:
    window = TrainingWindow({}, STEPS, first_step=first)
    progress = Progress(window, step=first + step, position=Position(step // STEPS, step % STEPS))
    assert describe_jump(saved, saved, progress) is None, "nothing was changed"
    sentence = describe_jump(saved, training, progress)
    if step >= window.total_steps(training):
        assert sentence is None, "no step follows"
        return

    def dense(of: TrainingConfig, at: int) -> float:
        return schedule_factor(of.schedule, at, window.total_steps(of)) * of.dense_optimizer.lr

    old, new = dense(saved, step - 1), dense(training, step)
    if max(old, new) > 2 * min(old, new) and max(dense(saved, step), new) > 2 * min(dense(saved, step), new):
        assert sentence is not None and "dense" in sentence and f"at step {first + step + 1}:" in sentence


def test_the_advice_consists_of_overrides_that_an_experiment_accepts() -> None:
    progress = Progress(TrainingWindow({}, STEPS), step=2 * STEPS, position=Position(2, 0))
    saved = TrainingConfig.model_validate(COSINE)
    sentence = describe_jump(saved, saved.model_copy(update={"epochs": 4}), progress)
    assert sentence is not None
    data = synthetic.experiment(Path("unused")).model_dump(mode="json")
    for override in sentence.partition("To continue at the last rates: ")[2].split():
        apply_override(data, override)
    parse_experiment(data, "advised")
