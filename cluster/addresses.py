"""Addresses of a Ray cluster as people type them: the URL of its dashboard, and the address that drivers join."""

import ipaddress
import os
import re
import socket
from typing import NoReturn
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from pipeline.errors import UserError

DASHBOARD_PORT = 8265
RAY_PORT = 6379
PORTS = {"http": 80, "https": 443}
CONNECT_S = 5


def dashboard_url(text: str) -> str:
    """The URL of a dashboard without what Ray's client cannot use: a slash at the end, the page of a browser.

    Without a scheme, the port is 8265 if none is given. A URL without a port is that of an ingress: port 80 or 443.

    Raises:
        UserError: the text is no such URL.
    """
    given = text.strip()
    has_scheme = "://" in given
    parts = _split(given if has_scheme else f"http://{_in_brackets(given)}")
    if parts is None:
        _refuse_url(text, None)
    if parts.scheme not in PORTS:
        host = f"{_host(parts)}" if parts.hostname else "HEAD"
        reason = "that is Ray Client, which Manygate does not use" if parts.scheme == "ray" else None
        _refuse_url(text, reason, host)
    if not parts.hostname or parts.netloc.endswith(":"):
        _refuse_url(text, None)
    if parts.username is not None or parts.password is not None:
        # Messages and the log would show them.
        _refuse_url(_host(parts), "a user or password in the address is not supported", _host(parts))
    if not has_scheme and parts.hostname in ("auto", "local") and parts.port is None:
        raise UserError(
            f"--address {text}: expected the URL of Ray's dashboard, such as http://HEAD:{DASHBOARD_PORT}. Without "
            "--address, the cluster is the head that `python -m cluster.local_head start` has started on this machine."
        )
    if parts.query:
        _refuse_url(f"{given.partition('?')[0]}?...", "what follows the ? would be lost", _host(parts))
    path = parts.path.rstrip("/")
    port = parts.port or (None if has_scheme or path else DASHBOARD_PORT)
    return f"{parts.scheme}://{_host(parts)}{'' if port is None else f':{port}'}{path}"


def cluster_address(text: str) -> str:
    """The value of RAY_ADDRESS: HOST:PORT, auto or local.

    Raises:
        UserError: it is neither.
    """
    given = text.strip()
    given, shown = given if "://" in given else given.rstrip("/"), text.rpartition("@")[2]  # without a password
    if given in ("auto", "local"):
        return given
    scheme, separator, _ = given.partition("://")
    parts = _split(given if separator else f"//{given}")
    host = _host(parts) if parts is not None and parts.hostname else "HEAD"
    if separator:
        meanings = {"ray": "Ray Client, which Manygate does not use", "http": "a dashboard", "https": "a dashboard"}
        meaning = meanings.get(scheme.lower(), "another service")
        raise UserError(
            f"RAY_ADDRESS is {shown}, the address of {meaning}: expected {host}:{RAY_PORT}, the address of the cluster "
            f"itself, on a machine of the cluster. From another machine: manygate submit JOB EXPERIMENT --address "
            f"http://{host}:{DASHBOARD_PORT}"
        )
    if parts is None or not parts.hostname or parts.port is None or parts.path or "@" in parts.netloc:
        raise UserError(
            f"RAY_ADDRESS is {shown}: expected the address of a cluster, such as {host}:{RAY_PORT}, or auto or local."
        )
    return f"{_host(parts)}:{parts.port}"


def is_same(one: str, other: str) -> bool:
    """Whether two addresses of the forms above are equal, where localhost means 127.0.0.1."""
    first, second = (address.replace("localhost:", "127.0.0.1:") for address in (one, other))
    return first == second


def host_and_port(address: str) -> tuple[str, int]:
    """Host and port of an address of the forms above."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    return parts.hostname or "", parts.port or PORTS.get(parts.scheme, 0)


def reachable(address: str) -> bool:
    """Whether a server listens at an address of the forms above. Ray itself needs over a minute to find out."""
    try:
        socket.create_connection(host_and_port(address), timeout=CONNECT_S).close()
    except OSError:
        return False
    return True


def without_proxy(host: str) -> dict[str, str]:
    """The environment variables with which no proxy is used for a host.

    The log of a job arrives by a connection that never uses a proxy, so that the host must be reachable anyway.
    """
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [name for name in listed.split(",") if name]
    return dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join(hosts if host in hosts else [*hosts, host]))


def unreachable(url: str) -> str:
    """The message for a dashboard that does not answer."""
    parts = urlsplit(url)
    proxies = getproxies()
    text = f"Nothing answers at {url}."
    if parts.port is None:
        text = f"Nothing answers at {url} (port {PORTS[parts.scheme]})."
        if parts.scheme == "http":
            text += f" If no ingress is there, add the port of the dashboard: http://{_host(parts)}:{DASHBOARD_PORT}"
            text += f"{parts.path}."
    text += " Check that the cluster is running, that its dashboard uses this port, and that the port is open."
    if parts.scheme in proxies and not proxy_bypass(parts.hostname or ""):
        text += (
            f" The proxy of the variable {parts.scheme}_proxy is not used: this machine must reach the head directly, "
            "or through a tunnel."
        )
    return text


def _split(text: str) -> SplitResult | None:
    """The parts of a URL; None if it has none that make sense."""
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname or ""
    except ValueError:
        return None
    if port == 0 or re.search(r"\s", text) or not re.fullmatch(r"[\w.-]*|[0-9a-fA-F:.]+", host):
        return None
    return parts


def _in_brackets(text: str) -> str:
    """An IPv6 address alone with the brackets that it has in a URL; any other text as it is."""
    try:
        return f"[{ipaddress.IPv6Address(text)}]"
    except ValueError:
        return text


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    return f"[{host}]" if ":" in host else host


def _refuse_url(text: str, reason: str | None, host: str = "HEAD") -> NoReturn:
    why = f"{reason}; " if reason else ""
    raise UserError(
        f"--address {text}: {why}expected the URL of Ray's dashboard, such as http://{host}:{DASHBOARD_PORT}, or "
        f"https://{host}/PATH behind an ingress."
    )
