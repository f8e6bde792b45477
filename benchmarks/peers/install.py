"""Creates the environment of the peers, `.venv-peers`: `python -m benchmarks.peers.install`, with Python 3.11 or 3.12.

The builds of torch, fbgemm and torchrec are the same as in the product's own environment. If the environment is
complete, a call returns at once; after an interruption, the next call continues where the last one stopped.
"""

import hashlib
import sys
from pathlib import Path

from cluster.accelerator import find_accelerator
from cluster.install import (
    InstallError,
    PipCall,
    make_environment,
    plan,
    report,
    run_step,
    usable_versions,
    versions_in,
    works,
)
from cluster.versions import FBGEMM_PACKAGES, PYARROW, PYTHONS, TORCHREC_NEEDS

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-peers"
STAMP = ENVIRONMENT / "peers-installed"
PEERS = ("torch-rechub==0.9.0", "polars==2.1.0", "numpy==2.4.6", f"pyarrow=={PYARROW}", "psutil==7.2.2")


def peers_step(accelerator: str, installed: dict[str, str]) -> PipCall:
    """What the peers need besides torch, fbgemm and torchrec; torch and fbgemm are pinned to the installed versions."""
    fbgemm = FBGEMM_PACKAGES[accelerator]
    pins = (f"torch=={installed['torch']}", f"{fbgemm}=={installed[fbgemm]}")
    return PipCall("torch-rechub and the other dependencies", (("install", *pins, *TORCHREC_NEEDS, *PEERS),))


def fingerprint(accelerator: str) -> str:
    """Changes with everything that decides what is installed."""
    digest = hashlib.sha256(f"{accelerator} {ROOT}".encode())
    files = (ROOT / "cluster/versions.py", ROOT / "cluster/accelerator.py", ROOT / "cluster/install.py", Path(__file__))
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def install() -> None:
    """Installs what the peers need into the environment.

    Raises:
        InstallError: this Python version is not supported, or pip failed.
    """
    if sys.version_info[:2] not in PYTHONS:
        raise InstallError(f"Python 3.11 or 3.12 is needed; this is {sys.version.split()[0]} ({sys.executable}).")
    accelerator = find_accelerator()
    wanted = fingerprint(accelerator)
    if STAMP.exists() and STAMP.read_text() == wanted and works(ENVIRONMENT):
        report(f"already complete: {ENVIRONMENT} ({accelerator})")
        return
    make_environment(ENVIRONMENT)
    STAMP.unlink(missing_ok=True)
    log = ENVIRONMENT / "peers-install.log"
    for step in plan(accelerator, usable_versions(ENVIRONMENT)):
        run_step(step, ENVIRONMENT, log)
    run_step(peers_step(accelerator, versions_in(ENVIRONMENT)), ENVIRONMENT, log)
    STAMP.write_text(wanted)
    report(f"done: {ENVIRONMENT} ({accelerator})")


if __name__ == "__main__":
    try:
        install()
    except InstallError as error:
        sys.exit(f"setup: {error}")
