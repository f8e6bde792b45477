"""Checks the installed packages, the machine and the cluster; every problem comes with what to type."""

import ipaddress
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from cluster import local_head, tokens, versions
from cluster.accelerator import find_accelerator
from cluster.addresses import cluster_address, reachable
from pipeline import machine
from pipeline.errors import UserError
from pipeline.sizes import in_bytes
from pipeline.workers.interface import GLOO_INTERFACE, interface_of, own_address

PACKAGES = ("torch", "torchrec", *versions.FBGEMM_PACKAGES.values(), "ray", "pyarrow")
PIP = f"{sys.executable} -m pip install"
PROBE = """
import json, torch, fbgemm_gpu
torch.ops.fbgemm.asynchronous_complete_cumsum(torch.ones(2, dtype=torch.int32))
devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(json.dumps({"cuda": torch.version.cuda, "devices": devices}))
"""


@dataclass(frozen=True)
class Finding:
    """The result of a check, in one line. A problem has a remedy: what to type."""

    text: str
    remedy: str | None = None

    @property
    def ok(self) -> bool:
        return self.remedy is None


def run_checks() -> list[Finding]:
    """Runs all checks, in the order of the report."""
    installed = installed_versions()
    findings = [python_version(), *compare_versions(installed), *torch_works(installed, find_accelerator())]
    return [*findings, processor(), memory(), network(), ray_cluster(), token()]


def check_versions() -> None:
    """Stops a job if torch, torchrec and fbgemm were not built for each other: they would crash or fail silently.

    Raises:
        UserError: with the expected version, the version found, and what to type.
    """
    problems = [finding for finding in compare_versions(installed_versions()) if not finding.ok]
    if problems:
        lines = [f"  {finding.text}\n    -> {finding.remedy}" for finding in problems]
        raise UserError("The installed versions do not fit together:\n" + "\n".join(lines))


def installed_versions() -> dict[str, str]:
    """Version of each package of PACKAGES that is installed, by name."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def compare_versions(installed: Mapping[str, str]) -> list[Finding]:
    """Compares installed versions with the known sets. The result depends only on the argument."""
    torch = installed.get("torch")
    known = versions.set_of(torch) if torch else None
    if torch is None:
        findings = [Finding("torch is not installed", "make setup")]
    elif known is None:
        expected = " or ".join(known_set.torch for known_set in versions.KNOWN)
        text = f"torch: expected {expected}, found {torch}"
        findings = [Finding(text, f"{PIP} torch=={versions.INSTALLED.torch}, then: manygate doctor")]
    else:
        findings = [Finding(f"torch {torch}")]
    wanted = known or versions.INSTALLED
    findings.append(
        one_version(installed, "torchrec", wanted.torchrec, f"built for torch {wanted.torch}", "--no-deps ")
    )
    findings.append(fbgemm_version(installed, wanted))
    findings.append(one_version(installed, "ray", versions.RAY, "tested with Manygate"))
    findings.append(one_version(installed, "pyarrow", versions.PYARROW, "tested with Manygate"))
    return findings


def one_version(installed: Mapping[str, str], name: str, wanted: str, reason: str, options: str = "") -> Finding:
    found = installed.get(name)
    if found is not None and versions.fits(found, wanted):
        return Finding(f"{name} {found}")
    extras = "ray[default,train]" if name == "ray" else name
    text = f"{name}: expected {wanted} ({reason}), found {found or 'none'}"
    return Finding(text, f"{PIP} {options}'{extras}=={wanted}'")


def fbgemm_version(installed: Mapping[str, str], wanted: versions.VersionSet) -> Finding:
    """Exactly one of the two builds must be installed, of the release that was built for torch."""
    present = [name for name in versions.FBGEMM_PACKAGES.values() if name in installed]
    if len(present) == 2:
        uninstall = f"{sys.executable} -m pip uninstall --yes {' '.join(present)}"
        text = f"{' and '.join(present)} are both installed: they overwrite each other's files"
        return Finding(text, f"{uninstall}, then: {PIP} '{present[0]}=={wanted.fbgemm}' (with a GPU: {present[1]})")
    if not present:
        return Finding("fbgemm is not installed", "make setup")
    if present[0] == versions.FBGEMM_PACKAGES["cpu"] and "cpu" not in wanted.accelerators:
        text = f"torch {wanted.torch} needs {versions.FBGEMM_PACKAGES['cuda']}; found {present[0]}"
        return Finding(text, "make setup")
    return one_version(installed, present[0], wanted.fbgemm, f"built for torch {wanted.torch}")


def torch_works(installed: Mapping[str, str], accelerator: str) -> list[Finding]:
    """Loads the libraries in a separate process, so that a crash can be reported, and lists the GPUs of torch."""
    probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)  # noqa: S603 - our own code
    if probe.returncode != 0:
        last = (probe.stderr.strip().splitlines() or [f"exit code {probe.returncode}"])[-1]
        return [Finding(f"fbgemm's library does not load with this torch: {last}", "make clean setup")]
    answer = json.loads(probe.stdout.splitlines()[-1])
    findings = [Finding("fbgemm's library loads")]
    devices = ", ".join(answer["devices"])
    if accelerator == "cpu":
        findings.append(Finding("GPU: none (nvidia-smi lists none)"))
    elif not devices:
        text = f"GPU: nvidia-smi lists a GPU, but torch sees none (built for CUDA {answer['cuda'] or 'none'})"
        findings.append(Finding(text, "make setup; also check whether CUDA_VISIBLE_DEVICES hides the GPU"))
    elif versions.FBGEMM_PACKAGES["cpu"] in installed:
        findings.append(Finding(f"GPU: {devices}, but fbgemm is the build for CPUs", "make setup"))
    else:
        findings.append(Finding(f"GPU: {devices} (CUDA {answer['cuda']})"))
    return findings


def python_version() -> Finding:
    found = sys.version.split()[0]
    if sys.version_info[:2] in versions.PYTHONS:
        return Finding(f"Python {found}")
    return Finding(f"Python: expected 3.11 or 3.12, found {found}", "make clean, then: make PYTHON=python3.11 setup")


def processor(proc: Path = machine.PROC) -> Finding:
    """The number of CPUs that this process may use, what limits it, and their bf16 instructions."""
    try:
        flags = set((proc / "cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    except OSError:
        flags = set()
    native = [name for name in ("amx_bf16", "avx512_bf16") if name in flags]
    bf16 = f"bf16 by {', '.join(native)}" if native else "no bf16 instructions: keep training.precision=fp32"
    count = machine.cpus(proc)
    return Finding(f"CPUs: {count.amount}{_limited_by(count)}, {bf16}")


def memory(proc: Path = machine.PROC) -> Finding:
    """The memory that this process may use, and what limits it."""
    size = machine.memory(proc)
    return Finding(f"memory: {in_bytes(size.amount)}{_limited_by(size)}")


def _limited_by(limit: machine.Limit) -> str:
    return f" (limited by {limit.file})" if limit.file is not None else ""


def network(name: str | None = None) -> Finding:
    """The interface and address that workers would use here.

    Args:
        name: of this machine, by default the system's.
    """
    name = name or socket.gethostname()
    given = os.environ.get(GLOO_INTERFACE)
    interfaces = sorted(psutil.net_if_addrs())
    if given and not set(given.split(",")) <= set(interfaces):
        text = f"network: {GLOO_INTERFACE} is {given}; the interfaces of this machine: {', '.join(interfaces)}"
        return Finding(text, f"unset {GLOO_INTERFACE}")
    address = own_address(name)
    if ipaddress.ip_address(address).is_loopback:
        return Finding("network: workers use lo (127.0.0.1): this machine has no route to others")
    try:
        resolved = socket.gethostbyname(name)
    except OSError:
        resolved = "nothing"
    note = ""
    if resolved == "nothing" or ipaddress.ip_address(resolved).is_loopback:
        note = f". {name} resolves to {resolved}, which is no problem"
    interface = f"{given} ({GLOO_INTERFACE})" if given else f"{interface_of(address)} ({address})"
    return Finding(f"network: workers on several machines use {interface}, on this one alone lo (127.0.0.1){note}")


def ray_cluster() -> Finding:
    """The cluster that a job would join."""
    head = local_head.running()
    try:
        address = cluster_address(os.environ.get("RAY_ADDRESS", "").strip() or "auto")
    except UserError as error:
        return Finding(f"Ray cluster: {error}", "unset RAY_ADDRESS, or set it as written there")
    if address not in ("auto", "local"):
        if reachable(address):
            return Finding(f"Ray cluster: something answers at {address} (RAY_ADDRESS)")
        return Finding(f"Ray cluster: nothing answers at {address} (RAY_ADDRESS)", "unset RAY_ADDRESS")
    if head is None:
        return Finding("Ray cluster: none; a job that needs Ray starts a private one")
    if local_head.answers(head, tokens.find_token() or ""):
        return Finding(f"Ray cluster: the head on this machine, {head.dashboard}")
    restart = "python -m cluster.local_head stop, then: python -m cluster.local_head start"
    return Finding(f"Ray cluster: the head on this machine refuses our token or hangs, {head.dashboard}", restart)


def token() -> Finding:
    """Whether Ray finds a token if it needs one, and whether other users can read the token."""
    mode, found = os.environ.get(tokens.MODE), tokens.find_token()
    if found is None and (mode == "token" or os.environ.get(tokens.TOKEN_PATH)):
        text = f"Ray token: none found in {tokens.source()}"
        return Finding(text, f"put the cluster's token there, or: unset {tokens.MODE} {tokens.TOKEN_PATH}")
    if tokens.readable_by_others():
        path = tokens.token_path()
        return Finding(f"Ray token: other users can read {path}", f"chmod 600 {path}")
    where = f"in {tokens.source()}" if found else "none yet; `python -m cluster.local_head start` creates one"
    return Finding(f"Ray token: {where}; {tokens.MODE} is {mode or 'not set'}")
