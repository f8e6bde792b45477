"""The number of workers that a run starts, from the room on the machines of a cluster."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.workers.cluster_room import WorkerDemand
from pipeline.workers.launch import check_workers
from pipeline.workers.stop import Stop, StopSignal


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


@pytest.mark.parametrize(("workers", "lanes"), [(3, 8), ((5, 7), 8), (16, 8), ((9, 20), 8)])
def test_numbers_of_workers_that_do_not_divide_the_lanes_are_refused(
    workers: int | tuple[int, int], lanes: int
) -> None:
    with pytest.raises(UserError, match=f"divide the {lanes} lanes .* use one of 1, 2, 4, 8"):
        check_workers(workers, lanes)
    check_workers((3, 4), lanes)  # the advice


def test_the_most_urgent_request_wins() -> None:
    stop = StopSignal()
    for level in (Stop.AFTER_STEP, Stop.AT_SAVE):
        stop.request(level)
    assert stop.level == Stop.AFTER_STEP and not stop.is_for_good and not stop.wait(0)
    stop.request()
    assert stop.level == Stop.FOR_GOOD and stop.wait(0)
