"""Every version that a tracked file names is the one that is installed: a stale one anywhere fails."""

import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator

import pytest

from cluster import versions
from cluster.install import ROOT, locked_versions

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
KUBERAY = "1.7.0"  # the operator whose definitions validate cluster/kubernetes/

# Files that name other versions on purpose: history, measurements, tests of wrong versions, what the lock's tests hold.
NOT_READ = re.compile(r"CHANGELOG\.md|docs/performance\.md|benchmarks/.*\.json|tests/.*|cluster/requirements\.lock")

BETWEEN = r"""(?:\[[\w,]+\])?["'`]*\s*(?:[=<>:~]=?|==)?\s*["'`v]*"""  # between a name and its version
NUMBER = r"(\d+(?:\.\d+|\.\*|\.x)*)(?![\w.]*[\w%])"


def one_of(*patterns: str) -> Callable[[str], bool]:
    """Whether a version is one of these, possibly shortened (1.8) or of any last part (1.6.x)."""

    def allowed(version: str) -> bool:
        written = version.replace(".x", ".*")
        return any(pattern == written or pattern.startswith(f"{written}.") for pattern in patterns)

    return allowed


KNOWN = versions.KNOWN
PYTHONS = [f"{major}.{minor}" for major, minor in versions.PYTHONS]
NAMES: dict[str, tuple[str, Callable[[str], bool]]] = {
    "ray": (r"\bray(?:version)?", one_of(versions.RAY)),
    "pyarrow": (r"\bpyarrow", one_of(versions.PYARROW, locked_versions()["pyarrow"])),
    "torch": (r"\btorch", one_of(*(known.torch for known in KNOWN))),
    "torchrec": (r"\btorchrec", one_of(*(known.torchrec for known in KNOWN))),
    "fbgemm": (r"\bfbgemm(?:[-_]gpu)?(?:[-_]cpu)?", one_of(*(known.fbgemm for known in KNOWN))),
    "manygate": (r"\bmanygate", one_of(PROJECT["version"])),
    "kuberay": (r"\bkuberay(?: operator)?", one_of(KUBERAY)),
    "python": (r"\bpython(?:_version)?(?: 3\.\d+ or)?", one_of(*PYTHONS)),
}


def versions_in(text: str) -> Iterator[tuple[str, str]]:
    """Each name with a version that follows it."""
    for name, (pattern, _) in NAMES.items():
        for found in re.finditer(rf"(?:{pattern}){BETWEEN}{NUMBER}", text.replace("+cpu", ""), re.IGNORECASE):
            yield name, found.group(1)


def stale(text: str) -> list[str]:
    return [f"{name} {version}" for name, version in versions_in(text) if not NAMES[name][1](version)]


def tracked_texts() -> dict[str, str]:
    names = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    texts = {}
    for name in names:
        path = ROOT / name
        if path.is_file() and not NOT_READ.fullmatch(name) and b"\0" not in (content := path.read_bytes()):
            texts[name] = content.decode()
    return texts


TEXTS = tracked_texts()


def test_no_file_names_another_version() -> None:
    assert {name: found for name, text in TEXTS.items() if (found := stale(text))} == {}


@pytest.mark.parametrize("name", NAMES)
def test_versions_are_found_where_they_are(name: str) -> None:
    assert any(found == name for text in TEXTS.values() for found, _ in versions_in(text))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("With Ray 2.59.0 and pyarrow 25.", ["ray 2.59.0", "pyarrow 25"]),
        ('  "ray[default,train]==2.59.0",', ["ray 2.59.0"]),
        ('rayVersion: "2.59.0"', ["ray 2.59.0"]),
        ("image: rayproject/ray:2.59.0", ["ray 2.59.0"]),
        ('RAY = "2.59.0"', ["ray 2.59.0"]),
        ("torch 2.12.0+cpu, torchrec 1.7.x", ["torch 2.12.0", "torchrec 1.7.x"]),
        ("`fbgemm-gpu-cpu==1.7.0`", ["fbgemm 1.7.0"]),
        ("docker build -t manygate:0.1.0-cuda .", ["manygate 0.1.0"]),
        ("the KubeRay operator 1.5.1 or newer", ["kuberay 1.5.1"]),
        ("FROM python:3.10-slim", ["python 3.10"]),
        ("Python 3.11 or 3.13", ["python 3.13"]),
        ("Ray needs 127.0.0.1; torch is fast: 1.7 times", []),
    ],
)
def test_stale_versions_are_recognised(text: str, found: list[str]) -> None:
    assert stale(text) == found


def test_project_file_and_list_of_versions_agree() -> None:
    assert f"ray[default,train]=={versions.RAY}" in PROJECT["dependencies"]
    assert f"pyarrow=={versions.PYARROW}" in PROJECT["dependencies"]


def test_table_of_the_readme_is_the_list_of_versions() -> None:
    rows = re.findall(r"^\| (?:installed by `make`|accepted) \| (.*) \|$", TEXTS["README.md"], re.MULTILINE)
    cells = [row.split(" | ") for row in rows]
    assert [(torch, torchrec.replace(".x", ".*")) for torch, torchrec, *_ in cells] == [
        (known.torch, known.torchrec) for known in versions.KNOWN
    ]
    for (_, _, fbgemm, accelerators), known in zip(cells, versions.KNOWN, strict=True):
        assert fbgemm == ", or ".join(f"{versions.FBGEMM_PACKAGES[name]} {known.fbgemm}" for name in known.accelerators)
        assert accelerators.lower() == ", ".join(known.accelerators)
