"""This machine's address and network interface for a group of workers."""

import ipaddress
import socket
from contextlib import closing

import psutil

from pipeline.errors import UserError

GLOO_INTERFACE, NCCL_INTERFACE = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
"""Variables from which gloo and NCCL take the name of the interface."""

OUTSIDE = "192.0.2.1"  # an address of documentation (RFC 5737): the system's route to it is the route to anywhere


def address_towards(host: str, port: int = 9) -> str:
    """This machine's address on the way to a host. Nothing is sent.

    Raises:
        OSError: the host's name cannot be resolved, or there is no route.
    """
    family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with closing(socket.socket(family, socket.SOCK_DGRAM)) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])


def own_address(host: str) -> str:
    """This machine's address for a group whose first worker is on `host`.

    On the first worker's machine the name may resolve to the loopback interface; then it is the address of the route
    to other networks.
    """
    for target in (host, OUTSIDE):
        try:
            address = address_towards(target)
        except OSError:
            continue
        if not ipaddress.ip_address(address).is_loopback:
            return address
    return "127.0.0.1"


def interface_of(address: str) -> str:
    """The network interface that has an address.

    Raises:
        UserError: no interface of this machine has it.
    """
    found = {name: [a.address.partition("%")[0] for a in known] for name, known in psutil.net_if_addrs().items()}
    for name, addresses in found.items():
        if address in addresses:
            return name
    if ipaddress.ip_address(address).is_loopback:
        return "lo"
    raise UserError(
        f"No network interface of {socket.gethostname()} has the address {address}, by which the other machines know "
        f"it; its interfaces: {', '.join(sorted(found))}. Start Ray there with --node-ip-address=ADDRESS, one of its "
        "own addresses."
    )
