"""Checks of installed versions, and the remedies for versions that do not fit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import diagnosis
from pipeline.errors import UserError
from pipeline.workers.interface import interface_of, own_address

FITS = {
    "torch": "2.13.0+cpu",
    "torchrec": "1.8.0",
    "fbgemm-gpu-cpu": "1.8.0",
    "ray": "2.60.0",
    "pyarrow": "26.0.1",
}
CUDA_13 = {"torch": "2.11.0+cu130", "torchrec": "1.6.2", "fbgemm-gpu": "1.6.0", "ray": "2.60.0", "pyarrow": "26.0.0"}


def problems(installed: dict[str, str]) -> list[diagnosis.Finding]:
    return [finding for finding in diagnosis.compare_versions(installed) if not finding.ok]


@pytest.mark.parametrize("installed", [FITS, CUDA_13])
def test_known_sets_have_no_problem(installed: dict[str, str]) -> None:
    assert problems(installed) == []


@pytest.mark.parametrize(
    ("change", "text", "remedy"),
    [
        ({"fbgemm-gpu-cpu": "1.9.0"}, "fbgemm-gpu-cpu: expected 1.8.0", "install 'fbgemm-gpu-cpu==1.8.0'"),
        ({"torchrec": "1.9.2"}, "torchrec: expected 1.8.0", "install --no-deps 'torchrec==1.8.0'"),
        ({"torchrec": ""}, "torchrec: expected 1.8.0", "install --no-deps 'torchrec==1.8.0'"),
        ({"torch": "2.14.1"}, "torch: expected 2.13.0 or 2.11.0, found 2.14.1", "install torch==2.13.0"),
        ({"ray": "2.50.0"}, "ray: expected 2.60.0", "install 'ray[default,train]==2.60.0'"),
        ({"pyarrow": "25.0.0"}, "pyarrow: expected 26.*", "install 'pyarrow==26.*'"),
        ({"fbgemm-gpu": "1.8.0"}, "are both installed", "pip uninstall --yes fbgemm-gpu-cpu fbgemm-gpu"),
    ],
)
def test_each_wrong_version_is_one_problem(change: dict[str, str], text: str, remedy: str) -> None:
    installed = {name: version for name, version in {**FITS, **change}.items() if version}
    [problem] = problems(installed)
    assert text in problem.text
    assert problem.remedy is not None
    assert remedy in problem.remedy


def test_older_torch_needs_its_own_torchrec_and_fbgemm() -> None:
    texts = [problem.text for problem in problems({**FITS, "torch": "2.11.0"})]
    assert "torchrec: expected 1.6.* (built for torch 2.11.0), found 1.8.0" in texts
    assert any("needs fbgemm-gpu; found fbgemm-gpu-cpu" in text for text in texts)


def test_each_missing_package_is_a_problem() -> None:
    assert len(problems({})) == 5


def test_wrong_version_stops_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "installed_versions", lambda: {**FITS, "fbgemm-gpu-cpu": "1.9.0"})
    with pytest.raises(UserError, match="expected 1.8.0 .*, found 1.9.0"):
        diagnosis.check_versions()


def test_versions_of_this_environment_fit() -> None:
    diagnosis.check_versions()


def test_crash_of_the_library_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "PROBE", "import os; os.abort()")
    [finding] = diagnosis.torch_works(FITS, "cpu")
    assert "does not load" in finding.text
    assert finding.remedy == "make clean setup"


def test_gpu_that_torch_or_fbgemm_cannot_use_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "PROBE", """print('{"cuda": null, "devices": []}')""")
    assert [finding.ok for finding in diagnosis.torch_works(FITS, "cuda")] == [True, False]
    monkeypatch.setattr(diagnosis, "PROBE", """print('{"cuda": "12.8", "devices": ["H200"]}')""")
    assert "build for CPUs" in diagnosis.torch_works(FITS, "cuda")[1].text


def test_limits_of_a_container_are_reported_with_the_file_that_sets_them(tmp_path: Path) -> None:
    assert diagnosis.memory(tmp_path).text.endswith("GiB")
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text("0::/\n")
    (tmp_path / "self/mountinfo").write_text(f"31 23 0:28 / {tmp_path} rw - cgroup2 cgroup2 rw\n")
    (tmp_path / "memory.max").write_text(str(512 * 2**20))
    (tmp_path / "cpu.max").write_text("10000 100000")
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags : fpu amx_bf16\n")
    assert diagnosis.memory(tmp_path).text == f"memory: 512.0 MiB (limited by {tmp_path}/memory.max)"
    count = diagnosis.processor(tmp_path).text
    expected = "CPUs: 1, " if len(os.sched_getaffinity(0)) == 1 else f"CPUs: 1 (limited by {tmp_path}/cpu.max), "
    assert count == f"{expected}bf16 by amx_bf16"


@pytest.mark.parametrize("name", ["127.0.1.1", "no-such-host.invalid"])
def test_network_is_reported_and_a_name_on_the_loopback_interface_is_no_problem(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    finding, address = diagnosis.network(name), own_address(name)
    assert finding.ok
    if address == "127.0.0.1":
        assert "this machine has no route to others" in finding.text
    else:
        assert f"use {interface_of(address)} ({address}), on this one alone lo (127.0.0.1)" in finding.text
        assert finding.text.endswith("which is no problem")


def test_an_interface_that_does_not_exist_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth99")
    finding = diagnosis.network()
    assert "GLOO_SOCKET_IFNAME is eth99; the interfaces of this machine: " in finding.text
    assert finding.remedy == "unset GLOO_SOCKET_IFNAME"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert diagnosis.network().ok


def test_doctor_needs_no_torch_for_the_network() -> None:
    code = "import sys, cluster.diagnosis as d; d.network(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


@pytest.mark.parametrize("text", ["http://head:8265", "ray://head:10001", "head", "head:port"])
def test_a_ray_address_of_another_form_is_a_problem(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", text)
    found = diagnosis.ray_cluster()
    assert not found.ok and ":6379" in found.text and f"RAY_ADDRESS is {text}" in found.text
