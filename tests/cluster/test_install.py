"""The steps that the installer plans; nothing is installed."""

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


def test_project_step_pins_torch_and_fbgemm() -> None:
    arguments = install.project_step("cpu", COMPLETE).attempts[0]
    assert "torch==2.13.0+cpu" in arguments
    assert "fbgemm-gpu-cpu==1.8.0" in arguments
    assert "torchmetrics==1.0.3" in arguments


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
