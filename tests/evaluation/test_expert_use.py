"""The use of experts compared with numbers computed by hand, on one worker and on two."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from models.task_weights import TaskWeights
from models.trunks.base import this_worker_alone
from pipeline.config.logs import ScenarioConfig
from pipeline.evaluation.expert_use import ExpertUse
from pipeline.loading.position import Position
from pipeline.sharding.module import StepOutput
from pipeline.workers.worker import Worker
from tests.workers import WorkerPool, one_worker

TASKS = ["click", "buy"]
TAB = ScenarioConfig(name="tab", column="t", values=[1, 0])
USER = ScenarioConfig(name="user", column="u", values=["new", "old"], other="drop")


def output(scenarios: torch.Tensor, weights: torch.Tensor, experts: dict[str, torch.Tensor]) -> StepOutput:
    rows = len(weights)
    nothing = torch.zeros(rows, len(TASKS))
    return StepOutput(
        losses=torch.zeros(len(TASKS)),
        scores=nothing,
        labels=nothing,
        weights=weights,
        fill=torch.tensor(1.0),
        scenarios=scenarios,
        position=Position(),
        diagnostics=torch.zeros(0),
        experts=experts,
    )


def by_hand() -> list[StepOutput]:
    """Batches of tabs 1, 0, 1, padding and of tab 0; one layer whose gate all tasks share, one with a gate per task."""
    shared = torch.tensor([[[0.25, 0.75], [1.0, 0.0], [0.75, 0.25], [0.0, 1.0]]])
    by_task = torch.stack([torch.tensor([[1.0, 0.0]] * 4), torch.tensor([[0.5, 0.5]] * 4)])
    scenarios, weights = torch.tensor([[0], [1], [0], [2]]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    last = {"tab 1": torch.tensor([[[0.0, 1.0]]]), "task 1": torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])}
    return [
        output(scenarios, weights, {"tab 1": shared, "task 1": by_task}),
        output(torch.tensor([[1]]), torch.ones(1), last),
    ]


def total_of(worker: Worker, batches: list[StepOutput], levels: list[ScenarioConfig]) -> dict[str, Any]:
    use = ExpertUse(TASKS, levels)
    for batch in batches[worker.rank :: worker.workers]:
        use.add(batch)
    return use.total(worker)


def test_means_by_hand() -> None:
    with one_worker() as worker:
        experts = total_of(worker, by_hand(), [TAB])
    assert experts == {
        "tab 1": {
            "groups": ["all tasks"],
            # All: (0.25 + 1 + 0.75 + 0) / 4. Only padding is in tab=other.
            "weight": {"all": [[0.5, 0.5]], "tab=1": [[0.5, 0.5]], "tab=0": [[0.5, 0.5]]},
            "selected": {"all": [[0.75, 0.75]], "tab=1": [[1.0, 1.0]], "tab=0": [[0.5, 0.5]]},
        },
        "task 1": {
            "groups": ["click", "buy"],
            "weight": {
                "all": [[1.0, 0.0], [0.375, 0.625]],
                "tab=1": [[1.0, 0.0], [0.5, 0.5]],
                "tab=0": [[1.0, 0.0], [0.25, 0.75]],
            },
            "selected": {
                "all": [[1.0, 0.0], [0.75, 1.0]],
                "tab=1": [[1.0, 0.0], [1.0, 1.0]],
                "tab=0": [[1.0, 0.0], [0.5, 1.0]],
            },
        },
    }


def drawn() -> list[StepOutput]:
    """Batches over two levels, some of their rows padding."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for rows in (40, 40, 7):
        scenarios = torch.stack([torch.randint(0, size, (rows,), generator=generator) for size in (2, 2)], dim=1)
        shares = torch.rand(2, rows, 5, generator=generator).log().mul(9).softmax(-1)
        weights = (torch.rand(rows, generator=generator) < 0.8).float()
        batches.append(output(scenarios, weights, {"task 1": shares * (shares > 0.1)}))
    return batches


def test_levels_and_their_combinations() -> None:
    batches = drawn()
    with one_worker() as worker:
        use = total_of(worker, batches, [TAB, USER])["task 1"]
    scenarios, weights = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("scenarios", "weights"))
    shares = torch.cat([batch.experts["task 1"] for batch in batches], dim=1)
    pairs = [f"tab={t}/user={u}" for t in (1, 0) for u in ("new", "old")]
    assert list(use["weight"]) == ["all", "tab=1", "tab=0", "user=new", "user=old", *pairs]
    for label, chosen in {
        "all": scenarios[:, 0] >= 0,
        "user=old": scenarios[:, 1] == 1,
        "tab=0/user=new": (scenarios[:, 0] == 1) & (scenarios[:, 1] == 0),
    }.items():
        rows = shares[:, chosen & (weights > 0)]
        for found, expected in ((use["weight"], rows.mean(1)), (use["selected"], (rows > 0).float().mean(1))):
            for group, values in zip(found[label], expected.tolist(), strict=True):
                assert group == pytest.approx(values, abs=1e-6)


def test_two_workers_equal_one_bit_by_bit(two_workers: WorkerPool) -> None:
    with one_worker() as worker:
        alone = total_of(worker, drawn(), [TAB, USER])
    assert two_workers.run(total_of, drawn(), [TAB, USER]) == [alone, {}]


def test_a_worker_without_rows(two_workers: WorkerPool) -> None:
    first = by_hand()[:1]
    with one_worker() as worker:
        alone = total_of(worker, first, [TAB])
    assert two_workers.run(total_of, first, [TAB]) == [alone, {}]
    assert two_workers.run(total_of, [], [TAB]) == [{}, {}]


def test_only_padding_and_no_experts_give_no_use() -> None:
    with one_worker() as worker:
        padding = output(torch.zeros(2, 1, dtype=torch.long), torch.zeros(2), {"task 1": torch.ones(1, 2, 1)})
        empty = {"task 1": {"groups": ["all tasks"], "weight": {}, "selected": {}}}
        assert total_of(worker, [padding], [TAB]) == empty
        assert total_of(worker, [output(torch.zeros(2, 1, dtype=torch.long), torch.ones(2), {})], [TAB]) == {}


@pytest.mark.parametrize("has_weights", [False, True])
def test_with_weights_a_row_counts_by_the_largest_of_its_weights(has_weights: bool) -> None:
    """Weights 0.5 and 1.5 in tab 1, none in tab 0, whose only row has no label: it counts 1 without weights."""
    batch = output(
        torch.tensor([[0], [0], [1], [0]]),
        torch.tensor([1.0, 1.0, 1.0, 0.0]),
        {"layer": torch.tensor([[[0.25, 0.75], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])},
    )
    values = torch.tensor([[0.5, 0.0], [0.1, 1.5], [0.0, 0.0], [0.0, 0.0]])
    batch = replace(batch, task_weights=TaskWeights.of(values, this_worker_alone))
    with one_worker() as worker:
        use = ExpertUse(TASKS, [TAB], has_weights)
        use.add(batch)
        found = use.total(worker)["layer"]
    by_weight = {"all": [[0.8125, 0.1875]], "tab=1": [[0.8125, 0.1875]]}
    by_row = {"all": [[1.25 / 3, 1.75 / 3]], "tab=1": [[0.625, 0.375]], "tab=0": [[0.0, 1.0]]}
    assert found["weight"] == (by_weight if has_weights else by_row)
    assert found["selected"]["tab=1"] == ([[1.0, 0.25]] if has_weights else [[1.0, 0.5]])
