"""Training that diverges saves no useless checkpoint, and its advice works."""

import pickle
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.cli import parse
from pipeline.checkpoint.format import complete_checkpoints
from pipeline.config.experiment import Experiment
from pipeline.errors import DivergedError, UserError
from pipeline.table.manifest import read_manifest
from pipeline.training.divergence import MARGIN, not_finite, part_of, step_to_resume
from pipeline.training.run import fresh_state
from pipeline.workers.worker import Worker
from tests import synthetic
from tests.training.runs import new_run, run_on, tensors
from tests.workers import WorkerPool, one_worker

EVERY_STEP = {"every_steps": 1, "keep_last": 100}
SANE = {"sparse_optimizer": {"lr": 0.01}, "dense_optimizer": {"kind": "sgd", "lr": 0.01}}


def with_rates(folder: Path, sparse: float, dense: float, **sections: Any) -> Experiment:
    training = {**SANE, "sparse_optimizer": {"lr": sparse}, "dense_optimizer": {"kind": "sgd", "lr": dense}}
    return synthetic.experiment(folder, **{"checkpoint": EVERY_STEP, "training": training, **sections})


def assert_every_checkpoint_is_finite(experiment: Experiment, scratch: Path) -> list[int]:
    steps = [saved.step for saved in complete_checkpoints(experiment.checkpoint_folder)]
    for step in steps:
        for name, value in tensors(experiment, step, scratch).items():
            assert not value.is_floating_point() or value.isfinite().all(), (step, name)
    return steps


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("sparse", "dense"), [(0.01, 1e10), (0.01, 1e25), (0.01, 1e38), (1e15, 0.01), (1e38, 0.01)])
def test_the_advice_after_an_explosion_works(
    tmp_path: Path, two_workers: WorkerPool, workers: int, sparse: float, dense: float
) -> None:
    """Six steps at sane rates; then rates at which weights overflow at once, or a few steps later. All steps are saved.

    Then the advice is followed, with sane rates, until the run finishes.
    """

    def train(experiment: Experiment, resume: str = "auto") -> str:
        if workers == 2:
            return str(two_workers.run(run_on, experiment, resume)[0])
        with one_worker() as worker:
            return run_on(worker, experiment, resume)

    start = new_run(tmp_path, checkpoint=EVERY_STEP, training={**SANE, "max_steps": 6})
    assert train(start) == "finished"
    with pytest.raises(DivergedError) as failed:
        train(with_rates(tmp_path, sparse, dense))
    assert set(range(1, 7)) <= set(assert_every_checkpoint_is_finite(start, tmp_path))
    message = str(failed.value)
    assert f"training.sparse_optimizer.lr={sparse / 10:.3g} training.dense_optimizer.lr={dense / 10:.3g}" in message
    command = parse(shlex.split(message[message.index("manygate train EXPERIMENT ") :])[1:])
    found = re.search(r"--resume (\S+/step-(\d+))", message)
    assert found is not None and int(found[2]) < 6, "not the last one, nor one of an explosion"
    assert command.resume == found[1] and len(command.overrides) == 2
    assert train(with_rates(tmp_path, 0.01, 0.01), found[1]) == "finished"
    assert assert_every_checkpoint_is_finite(start, tmp_path)[-1] == 24


def test_the_advice_is_followed_to_its_end(tmp_path: Path) -> None:
    """Rates at which a run cannot begin: no checkpoint is of use, and after starting over the run finishes."""
    experiment = with_rates(tmp_path, 0.01, 1e15)
    synthetic.write_table(Path(experiment.folder) / "table", experiment)
    with one_worker() as worker, pytest.raises(DivergedError, match="so start over: delete the run's folder") as failed:
        run_on(worker, experiment)
    assert "--resume" not in str(failed.value)
    shutil.rmtree(experiment.checkpoint_folder)
    with one_worker() as worker:
        assert run_on(worker, with_rates(tmp_path, 0.01, 0.01)) == "finished"


@pytest.mark.parametrize("keep_last", [1, 3, 100])
@pytest.mark.parametrize("rate", [1e3, 1e12])
def test_the_advice_followed_to_the_letter_ends_with_a_run_that_finishes(
    tmp_path: Path, rate: float, keep_last: int
) -> None:
    """Rates a tenth at a time, from the checkpoint of the message, until they are low enough."""
    kept = {"every_steps": 1, "keep_last": keep_last}
    start = new_run(tmp_path, checkpoint=kept, training={**SANE, "max_steps": 4})
    with one_worker() as worker:
        run_on(worker, start)
    sparse, dense, resume, tried = 0.01, rate, "auto", []
    for _ in range(16):
        try:
            with one_worker() as worker:
                assert run_on(worker, with_rates(tmp_path, sparse, dense, checkpoint=kept), resume) == "finished"
            break
        except DivergedError as error:
            tried.append(resume)
            found = re.search(r"--resume (\S+)", str(error))
            rates = re.search(r"sparse_optimizer.lr=(\S+) training.dense_optimizer.lr=(\S+)$", str(error))
            assert rates is not None
            sparse, dense, resume = float(rates[1]), float(rates[2]), found[1] if found else "auto"
            if found is None:
                shutil.rmtree(start.checkpoint_folder)
    assert 1 < len(tried) < 16 and assert_every_checkpoint_is_finite(start, tmp_path)[-1] == 24


def spoiled(worker: Worker, experiment: Experiment, part: str, value: float) -> str:
    """The message after one number of one worker's own part is no longer finite."""
    state = fresh_state(experiment, read_manifest(experiment.table_folder), worker)
    state.check_finite()
    if worker.rank == worker.workers - 1:
        tensors_of = dict(state._tensors())
        with torch.no_grad():
            if part == "table":
                shards = tensors_of["model"]["embedding.pooled.embedding_bags.user.weight"].local_shards()
                shards[0].tensor[-1, -1] = value
            elif part == "accumulator":
                of_table = tensors_of["optimizer"]["state"]["embedding.pooled.embedding_bags.user.weight"]
                next(iter(of_table.values())).local_shards()[0].tensor[-1] = value
            else:
                name = next(name for name in tensors_of["model"] if name.startswith(part))
                tensors_of["model"][name].view(-1)[-1] = value
    try:
        state.check_finite()
    except DivergedError as error:
        return str(error)
    return "finite"


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("table", "numbers in the embedding table user are not finite"),
        ("accumulator", "numbers in the optimizer's state of the embedding table user are not finite"),
        ("dense.model.trunk", "numbers in the trunk are not finite"),
        ("dense.model.head", "numbers in the head are not finite"),
        ("dense.model.bottom", "numbers in the bottom are not finite"),
    ],
)
def test_every_worker_learns_which_part_is_not_finite(
    tmp_path: Path, two_workers: WorkerPool, part: str, named: str, value: float
) -> None:
    """Also if it is the last number of a shard that only the last worker has."""
    messages = two_workers.run(spoiled, new_run(tmp_path), part, value)
    assert messages[0] == messages[1] and named in messages[0] and "After step 0, " in messages[0]


def test_the_error_is_sent_whole() -> None:
    sent = pickle.loads(pickle.dumps(DivergedError("A fact.", "Some advice.")))
    assert (str(sent), sent.fact, sent.args) == ("A fact. Some advice.", "A fact.", ("A fact. Some advice.",))


def test_huge_numbers_are_finite() -> None:
    huge = torch.full((4,), torch.finfo(torch.float32).max)
    empty, counts = torch.zeros(0), torch.tensor([2**40])
    assert not_finite({"model": {"a": huge, "b": -huge, "c": empty, "d": counts}}) == []
    assert not_finite({"model": {"a": torch.tensor([1.0, torch.nan]).bfloat16()}}) == [("model", "a")]


def test_parts_in_words() -> None:
    assert part_of("model", "dense.objective.log_variances") == "the objective"
    weight = "embedding.jagged.embeddings.item.weight"
    assert (
        part_of("optimizer", "state", weight, "item.momentum1") == "the optimizer's state of the embedding table item"
    )


@pytest.mark.parametrize(
    ("steps", "last_finite", "began", "is_retry", "expected"),
    [
        ([100, 200, 300], 350, 0, False, 300),  # 50 finite losses after it
        ([100, 200, 300], 300, 0, False, 200),  # the loss of step 301 was not finite: 300 is of no use
        ([100, 200, 300], 303, 0, False, 200),  # weights may have grown before they were saved
        ([100, 200, 300], 304, 300, False, 200),  # 300 was tried, and diverged at once
        ([100, 200, 300], 340, 300, True, 300),  # resumed from 300 for another reason
        ([5, 6, 7], 8, 0, False, 5),  # as early as possible
        ([5], 8, 5, False, 5),  # there is no other, and it was not tried with lower rates
        ([5], 8, 5, True, None),
        ([7], 7, 0, False, None),
        ([], 8, 0, False, None),
    ],
)
def test_which_checkpoint_is_advised(
    steps: list[int], last_finite: int, began: int, is_retry: bool, expected: int | None
) -> None:
    assert step_to_resume(steps, last_finite, began, is_retry) == expected


@given(
    st.lists(st.integers(1, 60), unique=True, max_size=6).map(sorted),
    st.integers(0, 60),
    st.integers(0, 60),
    st.booleans(),
)
def test_an_advised_checkpoint_was_followed_by_a_finite_loss(
    steps: list[int], last_finite: int, began: int, is_retry: bool
) -> None:
    advised = step_to_resume(steps, last_finite, began, is_retry)
    usable = [step for step in steps if step < last_finite]
    assert advised in usable if usable and not is_retry else advised in (None, *usable)
    if advised is not None and last_finite - advised < MARGIN:
        assert not [step for step in usable if step < advised and step != began], "none is earlier"


def test_a_validation_that_is_not_finite_has_the_advice_too(tmp_path: Path) -> None:
    """Weights that are huge but finite: the validation is the first to notice."""
    start = new_run(tmp_path, checkpoint=EVERY_STEP, training={**SANE, "max_steps": 3, "validate_every_steps": 100})
    with one_worker() as worker:
        run_on(worker, start)
    training = {**SANE, "max_steps": 4, "dense_optimizer": {"kind": "sgd", "lr": 1e38}, "validate_every_steps": 4}
    exploding = synthetic.experiment(tmp_path, checkpoint={"every_steps": 100, "keep_last": 100}, training=training)
    with one_worker() as worker, pytest.raises(UserError, match=r"--resume \S+/step-0000000[12]") as failed:
        run_on(worker, exploding)
    assert "are not finite" in str(failed.value)
