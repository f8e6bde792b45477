"""What the processes of a run listen on, as the kernel reports it (`ss` of iproute2)."""

import ipaddress
import re
import shutil
import subprocess

import psutil
import pytest

needs_ss = pytest.mark.skipif(shutil.which("ss") is None, reason="needs ss (iproute2)")


def process_tree(pid: int) -> dict[int, str]:
    """The command line of a process and of all that it has started, by process id."""
    commands = {}
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            commands[process.pid] = " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return commands


def listening(pid: int) -> list[tuple[str, str]]:
    """Address and command line of every listening TCP socket and every open UDP socket of a process tree."""
    before = process_tree(pid)
    rows = subprocess.run(["ss", "-Hltunp"], capture_output=True, text=True, check=True).stdout.splitlines()
    commands = before | process_tree(pid)
    return [
        (row.split()[4], commands[owner])
        for row in rows
        for owner in {int(number) for number in re.findall(r"pid=(\d+)", row)}
        if owner in commands
    ]


def is_on_loopback(address: str) -> bool:
    """Whether an address, as ss prints it, is of the loopback interface only."""
    text = address.rpartition(":")[0].partition("%")[0].strip("[]")
    host = ipaddress.ip_address("::" if text == "*" else text)
    mapped = host.ipv4_mapped if isinstance(host, ipaddress.IPv6Address) else None
    return (mapped or host).is_loopback
