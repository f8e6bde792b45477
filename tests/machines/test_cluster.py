"""A job on a cluster of machines that come and go ends as on one machine that nobody disturbs."""

from pathlib import Path

import pytest

from tests.machines.conftest import Alone
from tests.machines.machines import NamespaceMachine
from tests.machines.ray_cluster import RayCluster
from tests.machines.records import Records, loss_distance, losses, sample_difference
from tests.machines.runs import COMMAND_S, FILE, NAME, on_disk, stored
from tests.object_store import ObjectStore

THREE_AND_ONE = {2: 3, 3: 1}  # CPUs of the machines beside the head, which has none
NEWCOMER = 4
APART = 1e-6  # of losses: sums are rounded differently on other numbers of workers


@pytest.fixture(scope="module")
def table(alone: Alone, store: ObjectStore) -> str:
    """The URI of the table that was made on this host, in the store: for runs that begin with a table."""
    for name, content in on_disk(alone.run / "table").items():
        store.put(f"alone/table/{name}", content)
    return store.uri("alone/table")


def assert_as_undisturbed(alone: Alone, records: Records, metrics: bytes) -> None:
    """The same samples in every global batch, and the same losses at every step."""
    assert sample_difference(alone.records(), records) is None
    undisturbed = losses((alone.run / "metrics.jsonl").read_text())
    assert loss_distance(undisturbed, losses(metrics.decode())) < APART


def test_a_pipeline_survives_machines_that_are_lost_join_and_are_drained(
    cluster: RayCluster, project: Path, store: ObjectStore, alone: Alone
) -> None:
    """Logs to report in one job. Workers on 3 + 1 machines; one is lost; another one joins and is then drained."""
    cluster.ensure(THREE_AND_ONE)
    cluster.hold(15)
    command = cluster.submit(project, "pipeline", FILE, "--workers", "1-4")
    cluster.wait_until_held(NAME, 15, command)
    assert cluster.records_of(NAME).attempts()[0].machines == {"2": 3, "3": 1}
    cluster.machines[3].power_cut()

    cluster.hold(35)
    cluster.wait_until_held(NAME, 35, command)
    cluster.add(NEWCOMER, cpus=1)
    command.until_printed("There is room for 4 workers")

    cluster.hold(65)
    cluster.wait_until_held(NAME, 65, command)
    cluster.drain(cluster.machines[NEWCOMER], seconds=120)
    command.until_printed("is being taken away")
    cluster.release()
    assert command.end(COMMAND_S) == 0, command.output()

    results = stored(store, f"runs/{NAME}")
    tables = {name.removeprefix("table/"): content for name, content in results.items() if name.startswith("table/")}
    assert tables == on_disk(alone.run / "table")
    assert "report.html" in results
    records = cluster.records_of(NAME)
    full, after_loss, after_growth, after_drain = records.attempts()
    assert [attempt.workers for attempt in (full, after_loss, after_growth, after_drain)] == [4, 2, 4, 2]
    assert after_loss.repeats(full)  # shows that repeated steps are seen
    assert after_growth.repeats(after_loss) == [] and after_drain.repeats(after_growth) == []
    assert after_growth.machines == {"2": 3, f"{NEWCOMER}": 1} and after_drain.machines == {"2": 2}
    assert_as_undisturbed(alone, records, results["metrics.jsonl"])


def test_the_same_command_continues_on_a_new_head_and_waits_for_its_machines(
    table: str, cluster: RayCluster, project: Path, store: ObjectStore, alone: Alone
) -> None:
    """As on a cluster with an autoscaler, which has too few machines at first."""
    cluster.ensure(THREE_AND_ONE)
    arguments = ("train", FILE, "--workers", "2", "name=headless", f"table.path={table}")
    cluster.hold(25)
    command = cluster.submit(project, *arguments)
    cluster.wait_until_held("headless", 25, command)
    assert cluster.head is not None
    cluster.head.power_cut()
    assert command.end(COMMAND_S) != 0
    assert "cannot be reached any more" in command.output()

    cluster.lose_all()  # Ray would survive its head for minutes: its connections are silent, not closed
    cluster.release()
    cluster.ensure({3: 1})
    command = cluster.submit(project, *arguments)
    command.until_printed("Waiting for machines: 2 workers need 2 CPU; the cluster has room for 1.")
    cluster.add(2, THREE_AND_ONE[2])
    assert command.end(COMMAND_S) == 0, command.output()
    assert "Resumed from" in command.output()
    records = cluster.records_of("headless")
    assert [attempt.workers for attempt in records.attempts()] == [2, 2]
    assert_as_undisturbed(alone, records, store.content("runs/headless/metrics.jsonl"))


def test_machines_that_cannot_reach_each_other_are_named_in_one_sentence(
    table: str, cluster: RayCluster, project: Path
) -> None:
    cluster.ensure(THREE_AND_ONE)
    one, other = cluster.machines[2], cluster.machines[3]
    if not isinstance(one, NamespaceMachine):
        pytest.skip("machines without a network of their own always reach each other")
    one.lose_sight_of(other)
    try:
        arguments = ("name=walled", f"table.path={table}")
        command = cluster.submit(project, "train", FILE, "--workers", "4", *arguments)
        assert command.end(COMMAND_S) == 2, command.output()
    finally:
        one.see_again(other)
    output = command.output()
    assert f"on {other.address}" in output and f"on {one.address}" in output and "firewall" in output
    assert "Traceback" not in output
