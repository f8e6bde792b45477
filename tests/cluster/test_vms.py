"""The file for VMs: Ray's own checks accept it, and it opens nothing to the outside."""

import re
import shlex
from typing import Any

import pytest
import yaml

from cluster.install import ROOT

FILE = ROOT / "cluster" / "vms.yaml"
ADDRESSES = iter(f"192.0.2.{n}" for n in range(1, 255))  # reserved for documentation


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """The file with every placeholder filled in."""
    text = "\n".join(line for line in FILE.read_text().splitlines() if not line.startswith("#"))
    filled = re.sub(r"<address[^>]*>", lambda _: next(ADDRESSES), text)
    filled = re.sub(r"<[^>]+>", "value", filled)
    config: dict[str, Any] = yaml.safe_load(filled)
    return config


def starts(config: dict[str, Any]) -> list[list[str]]:
    """The arguments of `ray start`, on the head and on a worker."""
    commands = [config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]]
    return [shlex.split(command.partition(" ray start ")[2]) for command in commands]


def options(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The arguments of `ray start`, as Ray's own command line reads them."""
    from ray.scripts.scripts import start

    return [start.make_context("start", arguments).params for arguments in starts(config)]


def test_ray_accepts_the_file(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(config)
    validate_config(prepared)
    [machines] = prepared["available_node_types"].values()
    workers = len(config["provider"]["worker_ips"])
    assert (machines["min_workers"], machines["max_workers"]) == (workers, workers)


def test_every_option_of_ray_start_is_known(config: dict[str, Any]) -> None:
    head, worker = options(config)
    assert head["head"]
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"


def test_dashboard_listens_on_the_loopback_interface(config: dict[str, Any]) -> None:
    head, _ = options(config)
    assert head["dashboard_host"] == "127.0.0.1"
    assert f"--address http://127.0.0.1:{head['dashboard_port']}" in FILE.read_text()


def test_ports_are_named_and_differ(config: dict[str, Any]) -> None:
    head, worker = options(config)
    names = [name for name in head if name.endswith("_port")]
    own = {"dashboard_port", "ray_client_server_port"}
    assert all(head[name] for name in names)
    assert all(worker[name] == head[name] for name in set(names) - own)
    ports = [int(head[name]) for name in [*names, "port"]]
    assert len(set(ports)) == len(ports)
    workers = range(int(head["min_worker_port"]), int(head["max_worker_port"]) + 1)
    assert [port for port in ports if port in workers] == [workers.start, workers.stop - 1]


def test_ray_needs_the_token_on_every_machine(config: dict[str, Any]) -> None:
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token ray start" in " ".join(commands[-1].split())
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert config["setup_commands"][0] == "chmod 600 ~/.ray/auth_token"


def test_threads_of_workers_are_not_limited(config: dict[str, Any]) -> None:
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "env -u OMP_NUM_THREADS" in commands[-1]
