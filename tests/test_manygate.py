"""The error message if the folder or the environment has another package with the name of one of ours."""

import subprocess
import sys
from pathlib import Path

import pytest

import manygate_guard

ROOT = Path(manygate_guard.__file__).parent
# As when a person types `manygate`: the script's folder, and not the current one, is on Python's path.
SCRIPT = "import sys; from manygate import main; sys.exit(main())"
# As in an editable installation: our packages are found after everything that is on Python's path.
EDITABLE = f"""
import sys
from importlib.machinery import PathFinder

class Last:
    find_spec = staticmethod(lambda name, path=None, target=None: PathFinder.find_spec(name, [{str(ROOT)!r}]))

sys.meta_path.append(Last)
{SCRIPT}
"""


def call(folder: Path, *command: str, path: str = str(ROOT)) -> subprocess.CompletedProcess[str]:
    """Runs Python without site-packages: an import of a library before the guard's check would fail."""
    return subprocess.run(
        [sys.executable, "-S", *command, "--help"],
        cwd=folder,
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )


def make_package(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("print('imported')\n")
    return folder / name


def assert_refused(answer: subprocess.CompletedProcess[str], name: str, found: Path) -> None:
    assert answer.returncode == 2, answer.stderr
    assert answer.stdout == ""
    assert answer.stderr.count("\n") == 1
    assert answer.stderr.startswith(f"manygate: another package named {name!r} hides Manygate's own: ")
    assert f"finds {found}, expected {ROOT / name}; rename or uninstall it" in answer.stderr


@pytest.mark.parametrize("module", ["manygate", "jobs.cli"])
@pytest.mark.parametrize("name", ["pipeline", "models", "cluster"])
def test_package_in_the_current_folder(module: str, name: str, tmp_path: Path) -> None:
    found = make_package(tmp_path, name)
    assert_refused(call(tmp_path, "-m", module), name, found)


def test_package_named_jobs(tmp_path: Path) -> None:
    found = make_package(tmp_path, "jobs")
    assert_refused(call(tmp_path, "-m", "manygate"), "jobs", found)


def test_single_file(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text("print('imported')\n")
    assert_refused(call(tmp_path, "-m", "jobs.cli"), "models", tmp_path / "models.py")


def test_package_earlier_on_the_path(tmp_path: Path) -> None:
    script = tmp_path / "bin" / "manygate"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    found = make_package(tmp_path, "models")
    assert call(tmp_path, str(script)).returncode == 0  # the current folder does not matter to the command
    assert_refused(call(tmp_path, str(script), path=f"{tmp_path}:{ROOT}"), "models", found)


def test_folder_of_weights_hides_our_package_if_ours_is_found_last(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    assert call(tmp_path, "-m", "manygate").returncode == 0
    assert_refused(call(tmp_path, "-c", EDITABLE, path=""), "models", tmp_path / "models")


def test_our_packages_are_found(tmp_path: Path) -> None:
    assert manygate_guard.find_foreign_package() is None
    assert manygate_guard.find_foreign_package(tmp_path) is None
    assert manygate_guard.find_foreign_package(ROOT) is None
