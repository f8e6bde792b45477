"""The steps that the installer plans, and its messages; nothing is installed."""

import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from cluster import install

COMPLETE = {"torch": "2.13.0+cpu", "fbgemm-gpu-cpu": "1.8.0", "torchrec": "1.8.0"}


def commands(steps: list[install.PipCall]) -> list[str]:
    """The first attempt of each step."""
    return [" ".join(step.attempts[0]) for step in steps]


def test_empty_environment_on_a_cpu_gets_the_cpu_builds() -> None:
    assert commands(install.plan("cpu", {})) == [
        "install torch==2.13.0+cpu",
        "install fbgemm-gpu-cpu==1.8.0",
        "install --no-deps torchrec==1.8.0",
    ]


def test_cpu_build_of_torch_is_tried_first_and_the_default_build_last() -> None:
    attempts = install.plan("cpu", {})[0].attempts
    assert attempts[0][-1] == "torch==2.13.0+cpu"
    assert attempts[-1] == ("install", "torch==2.13.0")


def test_cuda_machine_gets_the_cuda_builds() -> None:
    assert commands(install.plan("cuda", {})) == [
        "install torch==2.13.0,!=2.13.0+cpu",
        "install fbgemm-gpu==1.8.0",
        "install --no-deps torchrec==1.8.0",
    ]


@pytest.mark.parametrize("torch", ["2.13.0+cpu", "2.13.0", "2.13.0+cu128"])
def test_complete_environment_is_kept(torch: str) -> None:
    assert install.plan("cpu", {**COMPLETE, "torch": torch}) == []


def test_interrupted_installation_continues() -> None:
    assert commands(install.plan("cpu", {"torch": "2.13.0"})) == [
        "install fbgemm-gpu-cpu==1.8.0",
        "install --no-deps torchrec==1.8.0",
    ]


def test_wrong_torch_is_replaced() -> None:
    assert commands(install.plan("cpu", {**COMPLETE, "torch": "2.14.1"})) == ["install torch==2.13.0+cpu"]


def test_gpu_added_to_a_machine_replaces_both_builds() -> None:
    assert commands(install.plan("cuda", COMPLETE)) == [
        "uninstall --yes fbgemm-gpu-cpu fbgemm-gpu",
        "install torch==2.13.0,!=2.13.0+cpu",
        "install fbgemm-gpu==1.8.0",
    ]


def test_two_builds_of_fbgemm_become_one() -> None:
    assert commands(install.plan("cpu", {**COMPLETE, "fbgemm-gpu": "1.8.0"})) == [
        "uninstall --yes fbgemm-gpu fbgemm-gpu-cpu",
        "install fbgemm-gpu-cpu==1.8.0",
    ]


def test_lock_file_is_installed_with_its_hashes_and_nothing_else() -> None:
    [arguments] = install.lock_step().attempts
    assert arguments[:3] == ("install", "--no-deps", "--require-hashes")
    assert arguments[-1] == str(install.LOCK)


def test_project_step_installs_nothing_but_the_project() -> None:
    [arguments] = install.project_step().attempts
    assert arguments == ("install", "--no-deps", "--no-build-isolation", "-e", str(install.ROOT))


def test_package_of_another_version_than_the_lock_is_noticed() -> None:
    locked = install.locked_versions()
    assert install.lock_is_installed({**locked, "unrelated": "1"})
    assert not install.lock_is_installed({**locked, "ray": "2.59.0"})
    assert not install.lock_is_installed({name: version for name, version in locked.items() if name != "tqdm"})


def test_file_with_another_hash_is_one_clear_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip itself finds the difference; the package is made here, so that no index is needed."""
    wheel = tmp_path / "small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("small-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n")
    lock = tmp_path / "requirements.lock"
    lock.write_text("small==1.0 \\\n" + " \\\n".join(f"    --hash=sha256:{digit * 64}" for digit in "ab") + "\n")
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setattr(install, "LOCK", lock)
    monkeypatch.setattr(install, "python_of", lambda _: Path(sys.executable))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(install.InstallError) as caught:
        install.run_step(install.lock_step(), tmp_path, tmp_path / "log")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert f"small==1.0: expected sha256 {'a' * 64} or {'b' * 64}, found {found}" in str(caught.value)
    assert "make lock" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_package_whose_installation_was_interrupted_is_installed_again(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    for name in ("whole", "half"):
        (packages / f"{name}-1.0.dist-info").mkdir(parents=True)
    (packages / "whole-1.0.dist-info" / "INSTALLER").write_text("pip\n")
    install.forget_incomplete_packages(tmp_path)
    assert [path.name for path in packages.iterdir()] == ["whole-1.0.dist-info"]


def test_folder_that_is_not_an_environment_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(install.InstallError, match="not a virtual environment"):
        install.make_environment(tmp_path)
    assert (tmp_path / "letter.txt").exists()


def test_next_attempt_follows_if_pip_does_not_find_the_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def pip(arguments: tuple[str, ...], environment: Path, log: Path) -> tuple[int, str]:
        tried.append(arguments[-1])
        return (0, "") if len(tried) == 2 else (1, "ERROR: No matching distribution found for a==1+cpu")

    monkeypatch.setattr(install, "run_pip", pip)
    install.run_step(install.PipCall("a", (("install", "a==1+cpu"), ("install", "a==1"))), tmp_path, tmp_path / "log")
    assert tried == ["a==1+cpu", "a==1"]


def test_other_failures_show_the_end_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = "WARNING: Location '/a' is ignored: it is neither\nERROR: no space left on device"
    monkeypatch.setattr(install, "run_pip", lambda *_: (1, output))
    with pytest.raises(install.InstallError, match="no space left") as caught:
        install.run_step(
            install.PipCall("a", (("install", "a==1+cpu"), ("install", "a==1"))), tmp_path, tmp_path / "log"
        )
    assert "is ignored" not in str(caught.value)
