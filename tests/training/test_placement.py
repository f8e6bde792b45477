"""Workers that share machines unevenly agree on one plan: the run is the same, up to rounding, as on one machine."""

import ctypes
import os
import socket
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.cluster import ClusterConfig
from pipeline.config.experiment import Experiment
from pipeline.workers.launch import Launcher
from pipeline.workers.resources import OwnMachine, common_resources
from tests.training.runs import metrics, new_run, run_on
from tests.workers import WorkerPool, fork

GIB = 2**30
CLONE_NEWUTS = 0x04000000  # of sched.h
THREE_AND_ONE, TWO_AND_TWO = [3, 1], [2, 2]


def machines(identities: str, cpus: int = 8, memory: int = 24 * GIB) -> list[OwnMachine]:
    return [OwnMachine(identity, cpus, memory, None) for identity in identities]


@pytest.mark.parametrize(
    ("identities", "local_workers", "threads", "memory"),
    [
        ("a", 1, 8, 24),
        ("aaaa", 4, 2, 6),
        ("aabb", 2, 4, 12),
        ("abcd", 1, 8, 24),
        ("aaab", 1, 2, 8),
        ("abbb", 1, 2, 8),
        ("aabbbb", 1, 2, 6),
        ("abab", 1, 4, 12),  # ranks of a machine that are not consecutive
        ("abba", 1, 4, 12),
        ("a" * 16, 16, 1, 1.5),
    ],
)
def test_workers_agree_on_the_least_that_any_of_them_has(
    identities: str, local_workers: int, threads: int, memory: float
) -> None:
    agreed = common_resources(machines(identities), ClusterConfig())
    assert (agreed.local_workers, agreed.threads, agreed.memory) == (local_workers, threads, memory * GIB)
    assert agreed.device_memory is None


def test_different_machines() -> None:
    small = OwnMachine("small", 2, 8 * GIB, 16 * GIB)
    agreed = common_resources([OwnMachine("large", 64, 512 * GIB, 80 * GIB), small], ClusterConfig())
    assert (agreed.threads, agreed.memory, agreed.device_memory) == (2, 8 * GIB, 16 * GIB)


def test_the_experiment_limits_threads_and_memory() -> None:
    cluster = ClusterConfig(cpus_per_worker=3, memory_per_worker=2 * GIB)
    agreed = common_resources(machines("aaaa"), cluster)
    assert (agreed.threads, agreed.memory) == (3, 2 * GIB)
    more = ClusterConfig(memory_per_worker=100 * GIB)
    assert common_resources(machines("aaaa"), more).memory == 6 * GIB


def experiment(folder: Path, sharding: str | None) -> Experiment:
    split = {} if sharding is None else {"sharding": sharding}
    ids = {"ids": {"hash": 48}, "dim": 8, **split}
    features: list[dict[str, Any]] = [
        {"name": "user", "column": "u", "kind": "categorical", **ids},
        {"name": "item", "column": "i", "kind": "categorical", "ids": {"hash": 28}, "dim": 8},
        {"name": "tags", "column": "t", "kind": "multivalued", "ids": {"hash": 10}, "dim": 8, **split},
        {"name": "watched", "column": "w", "kind": "sequence", "shares": "item", "max_length": 6},
        {"name": "age", "column": "a", "kind": "numeric", "encode": {"standardize": "identity"}},
    ]
    return new_run(folder, features=features, training={"log_every_steps": 1, "epochs": 1})


def losses(run: Experiment) -> list[float]:
    records = [record for record in metrics(run) if record["kind"] == "train"]
    return [task["loss"] for record in records for task in record["tasks"].values()]


def train(run: Experiment, rank: int, port: int, sizes: list[int], has_hosts: bool) -> None:
    """One of four workers, on machines with so many workers, with the environment that torchrun gives it."""
    host = 0 if rank < sizes[0] else 1
    local = {"LOCAL_RANK": str(rank - host * sizes[0]), "LOCAL_WORLD_SIZE": str(sizes[host])}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "test", **local, **address})
    if has_hosts:
        own_host_name(f"machine-{host}")
    Launcher("local", None, lambda: None).run(run_on, run)


def own_host_name(name: str) -> None:
    """Gives this process a host name of its own, as a process on another machine has.

    Raises:
        PermissionError: only root may do this.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUTS) != 0:
        raise PermissionError(ctypes.get_errno(), "unshare")
    socket.sethostname(name)


def run_placed(run: Experiment, sizes: list[int], has_hosts: bool, output: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [fork(train, run, rank, port, sizes, has_hosts, output=output) for rank in range(4)]
    running = list(processes)
    while running and wait([process.sentinel for process in running], timeout=120):
        running = [process for process in running if process.is_alive()]
        if any(process.exitcode for process in processes):
            break  # the other workers would wait for this one
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * 4, output.read_text()[-4000:]


def try_host_name() -> None:
    own_host_name("another")


@pytest.fixture(scope="module")
def host_names() -> Iterator[None]:
    process = fork(try_host_name, output=Path(os.devnull))
    process.join()
    if process.exitcode != 0:
        pytest.skip("a process with its own host name needs root")
    yield


SHARDINGS = [None, "table_row_wise", "grid_shard"]


@pytest.fixture(scope="module", params=SHARDINGS)
def on_one_machine(
    request: pytest.FixtureRequest, four_workers: WorkerPool, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str | None, list[float]]:
    run = experiment(tmp_path_factory.mktemp("one"), request.param)
    four_workers.run(run_on, run)
    return request.param, losses(run)


def test_the_numbers_that_a_launcher_gives_do_not_decide_the_plan(
    on_one_machine: tuple[str | None, list[float]], tmp_path: Path
) -> None:
    sharding, expected = on_one_machine
    run = experiment(tmp_path, sharding)
    run_placed(run, THREE_AND_ONE, has_hosts=False, output=tmp_path / "printed.txt")
    assert losses(run) == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("sizes", [THREE_AND_ONE, TWO_AND_TWO])
def test_workers_on_two_machines(
    on_one_machine: tuple[str | None, list[float]], host_names: None, tmp_path: Path, sizes: list[int]
) -> None:
    sharding, expected = on_one_machine
    run = experiment(tmp_path, sharding)
    run_placed(run, sizes, has_hosts=True, output=tmp_path / "printed.txt")
    assert losses(run) == pytest.approx(expected, rel=2e-4)
