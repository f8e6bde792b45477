"""The lock file contains everything that pyproject.toml asks for, within its bounds, and fits every machine."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cluster import lock, versions
from cluster.install import LOCK, ROOT, locked_versions

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]


def required() -> list[Requirement]:
    """Every requirement of the project, its extras and its build, and what torchrec needs."""
    lists = [PROJECT["project"]["dependencies"], *EXTRAS.values(), PROJECT["build-system"]["requires"]]
    return [Requirement(text) for requirements in [*lists, versions.TORCHREC_NEEDS] for text in requirements]


@pytest.mark.parametrize("requirement", required(), ids=str)
def test_every_requirement_is_locked_within_its_bounds(requirement: Requirement) -> None:
    assert locked_versions()[canonicalize_name(requirement.name)] in requirement.specifier


def test_locked_packages_need_only_locked_packages() -> None:
    """Dependencies of dependencies too, as the installed packages state them."""
    from importlib.metadata import PackageNotFoundError, distribution

    locked, missing = locked_versions(), []
    expected = {*locked, *lock.BY_VERSION}
    # Requirement of a package, evaluated for the extras that the project uses.
    extras = {canonicalize_name(requirement.name): requirement.extras for requirement in required()}
    for name in expected:
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:  # the other build of fbgemm
            continue
        for need in map(Requirement, needs):
            wanted = any(
                need.marker is None or need.marker.evaluate({"extra": extra}) for extra in ("", *extras.get(name, ()))
            )
            if wanted and canonicalize_name(need.name) not in expected:
                missing.append(f"{name} needs {need}")
    assert [need for need in missing if not lock.ONLY_WITH_CUDA.match(need.partition(" needs ")[2])] == []


def test_lock_names_no_index_and_has_a_hash_for_each_package() -> None:
    text = LOCK.read_text()
    assert "://" not in text
    blocks = re.split(r"^(?=[\w])", text, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(locked_versions())
    assert all(re.fullmatch(r"\S+==\S+( \\\n    --hash=sha256:[0-9a-f]{64})+\n", block) for block in blocks)


def test_versions_that_other_files_name_are_those_of_the_lock() -> None:
    locked = locked_versions()
    assert locked["ray"] == versions.RAY
    assert versions.fits(locked["pyarrow"], versions.PYARROW)
    assert versions.fits(locked["torchrec"], versions.INSTALLED.torchrec)
    assert not set(lock.BY_VERSION) & set(locked)
    assert f"torch=={versions.INSTALLED.torch} sha256:" in LOCK.read_text()
    assert f"fbgemm-gpu-cpu=={versions.INSTALLED.fbgemm} sha256:" in LOCK.read_text()


def test_lock_is_made_for_the_supported_versions_of_python() -> None:
    first, last = min(versions.PYTHONS), max(versions.PYTHONS)
    bounds = f">={first[0]}.{first[1]},<{last[0]}.{last[1] + 1}"
    assert PROJECT["project"]["requires-python"] == bounds
    assert f"python_full_version < '{last[0]}.{last[1] + 1}'" in PROJECT["tool"]["uv"]["environments"][0]


@pytest.mark.parametrize(
    ("wheel", "python311", "python312"),
    [
        ("a-1-py3-none-any.whl", True, True),
        ("a-1-py2.py3-none-any.whl", True, True),
        ("a-1-py312-none-any.whl", False, True),
        ("a-1-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", True, False),
        ("a-1-cp39-abi3-manylinux_2_28_x86_64.whl", True, True),
        ("a-1-py3-none-manylinux2010_x86_64.whl", True, True),
        ("a-1-cp312-cp312-musllinux_1_2_x86_64.whl", False, False),
        ("a-1-cp312-cp312-manylinux_2_28_aarch64.whl", False, False),
        ("a-1-cp312-cp312t-manylinux_2_28_x86_64.whl", False, False),
        ("a-1-cp312-cp312-win_amd64.whl", False, False),
    ],
)
def test_wheels_of_supported_machines_are_recognised(wheel: str, python311: bool, python312: bool) -> None:
    assert lock.fits(f"https://index/{wheel}", (3, 11)) == python311
    assert lock.fits(f"https://index/{wheel}", (3, 12)) == python312
