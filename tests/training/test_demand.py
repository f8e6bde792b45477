"""The number of workers that a run starts, from the room on the machines of a cluster."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.argument_types import worker_count
from pipeline.config.training import TableConfig
from pipeline.errors import UserError
from pipeline.workers.cluster_room import WorkerDemand, waiting
from pipeline.workers.launch import Launcher
from pipeline.workers.stop import InterruptedRunError, Stop, StopSignal
from pipeline.workers.worker_count import check_workers


def demand(fewest: int, most: int, lanes: int, **resources: float) -> WorkerDemand:
    return WorkerDemand(fewest, most, lanes, resources or {"CPU": 1}, "PACK")


def test_the_largest_number_that_fits_and_divides_the_lanes() -> None:
    wanted = demand(1, 8, 8)
    assert [wanted.useful(room) for room in range(10)] == [None, 1, 2, 2, 4, 4, 4, 4, 8, 8]
    assert [wanted.next_after(workers) for workers in (1, 2, 4, 8)] == [2, 4, 8, None]
    assert demand(3, 3, 8).useful(100) is None and demand(2, 6, 8).useful(100) == 4


@given(st.integers(0, 7), st.integers(1, 40), st.integers(0, 40), st.integers(0, 200))
def test_more_room_never_means_fewer_workers(exponent: int, fewest: int, span: int, room: int) -> None:
    wanted = demand(fewest, fewest + span, 2**exponent)
    count, with_more = wanted.useful(room), wanted.useful(room + 1)
    if count is not None:
        assert fewest <= count <= min(room, fewest + span) and 2**exponent % count == 0
        assert with_more is not None and with_more >= count
        following = wanted.next_after(count)
        assert following is None or (count < following <= fewest + span and 2**exponent % following == 0)


def test_room_is_counted_per_machine() -> None:
    """Two machines with 3 CPUs each have room for two workers of 2 CPUs, not for three."""
    machines = {"a": {"CPU": 3.0, "memory": 10.0}, "b": {"CPU": 3.0, "memory": 5.0}, "c": {"memory": 99.0}}
    assert demand(1, 8, 8, CPU=2).room(machines) == 2
    assert demand(1, 8, 8, CPU=1).room(machines) == 6
    assert demand(1, 8, 8, CPU=1, memory=4).room(machines) == 3
    assert demand(1, 8, 8, CPU=1, GPU=1).room(machines) == 0


@pytest.mark.parametrize("lanes", [1, 2, 8, 64])
@pytest.mark.parametrize("workers", [*range(1, 20), 64, 65, 128, (5, 7), (9, 20), (3, 4), (33, 63), (65, 200)])
def test_numbers_of_workers_that_do_not_divide_the_lanes_are_refused_with_numbers_that_do(
    workers: int | tuple[int, int], lanes: int
) -> None:
    fewest, most = workers if isinstance(workers, tuple) else (workers, workers)
    if any(fewest <= count <= most and lanes % count == 0 for count in range(1, lanes + 1)):
        check_workers("ray", workers, lanes)
        return
    with pytest.raises(UserError, match=f"divide the {lanes} lanes of the feature table; use one of 1") as caught:
        check_workers("ray", workers, lanes)
    numbers, _, rebuilt = str(caught.value).partition("use one of ")[2].rstrip(".").partition(", or make ")
    for number in numbers.split(", "):
        check_workers("ray", int(number), lanes)
    if rebuilt:
        more = TableConfig(lanes=int(rebuilt.partition("table.lanes=")[2])).lanes
        check_workers("ray", workers, more)
    else:  # no number of lanes fits, because it is a power of two
        assert not any(fewest <= 2**k <= most for k in range(10))


@pytest.mark.parametrize("workers", [2, (2, 8), 3])
def test_the_local_launcher_refuses_several_workers_with_advice_for_ray(workers: int | tuple[int, int]) -> None:
    with pytest.raises(UserError) as caught:
        check_workers("local", workers, 8)
    if workers == 3:  # which Ray could not start either
        assert "use one of 1, 2, 4, 8" in str(caught.value)
        return
    advice = re.search(r"--launcher ray --workers ([\d-]+)", str(caught.value))
    assert advice is not None
    check_workers("ray", worker_count(advice[1]), 8)


def test_processes_of_torchrun_are_checked_before_they_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="torchrun started 3 processes .*: the workers must divide the 8 lanes"):
        Launcher("local", None, lambda: None).check(8)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match="--workers is 2-8, but torchrun started 4 processes: omit --workers"):
        Launcher("local", (2, 8), lambda: None).check(8)
    for workers in (None, 4):
        Launcher("local", workers, lambda: None).check(8)


@pytest.mark.parametrize("room", range(10))
def test_too_little_room_names_a_number_of_workers_for_which_there_is_room(room: int) -> None:
    """Never a number that does not divide the lanes, or for which there is no room either."""
    wanted = demand(16, 16, 8)
    advice = wanted.fewer(room)
    if room == 0:
        assert advice == ""
        return
    count = int(advice.removeprefix("--workers "))
    check_workers("ray", count, wanted.lanes)
    assert demand(count, count, wanted.lanes).useful(room) == count


def test_a_run_that_waits_does_not_take_its_own_last_start_for_another_job() -> None:
    first, later = (waiting(demand(2, 2, 8), total=2, is_first=is_first) for is_first in (True, False))
    assert first.startswith("Waiting: 2 workers need 2 CPU, which other jobs are using.")
    assert "which other jobs, or workers of this run's last start that have not ended, are using." in later


def test_the_most_urgent_request_wins() -> None:
    stop = StopSignal()
    for level in (Stop.AFTER_STEP, Stop.AT_SAVE):
        stop.request(level)
    assert stop.level == Stop.AFTER_STEP and not stop.is_for_good and not stop.wait(0)
    stop.check()
    stop.request()
    assert stop.level == Stop.FOR_GOOD and stop.wait(0)
    with pytest.raises(InterruptedRunError):
        stop.check()
