"""Versions that work together, used by the installer and by `manygate doctor`.

Standard library only: the installer runs it before anything is installed.
"""

from dataclasses import dataclass

PYTHONS = ((3, 11), (3, 12))
RAY = "2.60.0"
PYARROW = "26.*"
TORCHREC_NEEDS = ("tensordict", "torchmetrics==1.0.3", "tqdm", "pyre-extensions")
"""torchrec's dependencies except fbgemm. pip would install the CUDA build of that, so torchrec is installed alone."""

FBGEMM_PACKAGES = {"cpu": "fbgemm-gpu-cpu", "cuda": "fbgemm-gpu"}
"""Two builds with the same import name: never install both."""


@dataclass(frozen=True)
class VersionSet:
    """Releases of torch, torchrec and fbgemm that were built for each other. `*` matches any last part."""

    torch: str
    torchrec: str
    fbgemm: str
    accelerators: tuple[str, ...]


INSTALLED = VersionSet(torch="2.13.0", torchrec="1.8.0", fbgemm="1.8.0", accelerators=("cpu", "cuda"))
"""The set that `make setup` installs."""

KNOWN = (INSTALLED, VersionSet(torch="2.11.0", torchrec="1.6.*", fbgemm="1.6.0", accelerators=("cuda",)))


def public(version: str) -> str:
    """A version without its build: 2.13.0+cpu -> 2.13.0."""
    return version.partition("+")[0]


def fits(version: str, pattern: str) -> bool:
    """Whether a version matches a pattern such as 1.8.0 or 1.6.*; the build is ignored."""
    if pattern.endswith(".*"):
        return public(version).startswith(pattern[:-1])
    return public(version) == pattern


def set_of(torch: str) -> VersionSet | None:
    """The known set that a torch version belongs to."""
    return next((known for known in KNOWN if fits(torch, known.torch)), None)
