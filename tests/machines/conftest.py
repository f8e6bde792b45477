"""Machines on this host, an object store that they reach, and what one machine alone makes of the same experiment."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.machines.machines import Network, network
from tests.machines.ray_cluster import ROOT, RayCluster
from tests.machines.records import Records
from tests.machines.runs import FILE, NAME, run_here, write_project
from tests.object_store import ObjectStore, object_store


@dataclass(frozen=True)
class Alone:
    """A table and a run that were made on this host, without a cluster and undisturbed."""

    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / NAME

    def records(self) -> Records:
        return Records(self.folder / "records" / NAME)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the machines see."""
    return tmp_path_factory.mktemp("machines")


@pytest.fixture(scope="session")
def net(folder: Path, request: pytest.FixtureRequest) -> Iterator[Network]:
    with network([Path(sys.prefix), Path(sys.base_prefix), ROOT, folder]) as made:
        if not made.has_network:
            with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
                print(
                    "\nMachines with their own network need root, iproute2 and util-linux: each machine is a group of "
                    "processes on this one instead, and what concerns their network is not tested."
                )
        yield made


@pytest.fixture(scope="session")
def store(net: Network) -> Iterator[ObjectStore]:
    with object_store(net.host) as running:
        yield running


@pytest.fixture(scope="session")
def project(folder: Path, store: ObjectStore) -> Path:
    path = folder / "project"
    path.mkdir()
    write_project(path, store)
    return path


@pytest.fixture(scope="session")
def alone(folder: Path, project: Path, store: ObjectStore) -> Alone:
    made = Alone(folder / "alone")
    made.folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | store.environment
    run_here(project, made.folder, environment, "preprocess", FILE)
    run_here(project, made.folder, environment, "train", FILE)
    return made


@pytest.fixture(scope="session")
def cluster(net: Network, folder: Path, store: ObjectStore) -> RayCluster:
    """No machine of it is up yet: see `RayCluster.ensure`. All end with the network."""
    return RayCluster(net, folder, store.endpoint)
