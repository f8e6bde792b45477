"""`manygate plan`: the memory that it assumes."""

from pathlib import Path

from pipeline import machine
from pipeline.config.load import dump_experiment
from pipeline.sizes import in_bytes
from tests.commands import manygate
from tests.training.runs import new_run


def plan(folder: Path, *arguments: str, code: int = 0) -> str:
    file = folder / "experiment.yaml"
    if not file.exists():
        file.write_text(dump_experiment(new_run(folder)))
    answer = manygate("plan", str(file), "--workers", "2", *arguments, check=code)
    return answer.out + answer.err


def test_without_a_number_a_cpu_worker_has_the_memory_that_it_would_have_in_training(tmp_path: Path) -> None:
    on_cpu = ("--device", "cpu")
    assert f"of {in_bytes(machine.memory().amount)}." in plan(tmp_path, *on_cpu)
    assert "of 512.0 MiB." in plan(tmp_path, *on_cpu, "cluster.memory_per_worker=512MiB")
    assert "of 256.0 MiB." in plan(tmp_path, *on_cpu, "cluster.memory_per_worker=512MiB", "--memory", "256MiB")
    assert "of 80.0 GiB." in plan(tmp_path, "cluster.memory_per_worker=512MiB")


def test_tables_that_do_not_fit_into_the_memory_of_a_worker(tmp_path: Path) -> None:
    printed = plan(tmp_path, "--device", "cpu", "cluster.memory_per_worker=8KiB", code=2)
    assert "cannot place" in printed or "does not fit" in printed
