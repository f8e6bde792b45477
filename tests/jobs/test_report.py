"""`manygate report`: from a training and an evaluation to the page, and on the command line."""

import json
import shlex
from pathlib import Path

import pytest

from cluster import submission
from jobs import cli
from jobs.report import run
from pipeline.checkpoint.choice import LATEST
from pipeline.config.load import dump_experiment, load_experiment
from pipeline.scoring.checkpoint_evaluation import evaluate_on_worker
from tests.tiny import EXPERIMENT
from tests.training.runs import new_run, run_on
from tests.workers import one_worker


def test_from_training_to_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = {"epochs": 1, "max_steps": 4, "log_every_steps": 2}
    experiment = new_run(tmp_path, training=short, scenarios=[{"name": "tab", "column": "s", "values": [0, 1]}])
    with one_worker() as worker:
        run_on(worker, experiment)
        evaluate_on_worker(worker, experiment, LATEST, "test")
    folder = Path(experiment.folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    validations = [line for line in lines if line["kind"] == "valid"]
    assert validations and all({"kind", "step", "rows", "tasks"} <= set(line) for line in validations)
    assert not any(set(line) & {"reliability", "experts"} for line in validations)

    evaluation = json.loads((folder / "evaluation-test.json").read_text())
    assert evaluation.keys() >= {"split", "checkpoint", "inputs", "rows", "tasks", "given", "reliability", "experts"}
    cells = ["all", "tab=0", "tab=1", "tab=other"]
    assert {task: list(curves) for task, curves in evaluation["reliability"].items()} == dict.fromkeys(
        ["click", "buy", "value", "buy_given_click"], cells
    )
    assert sum(evaluation["reliability"]["buy"]["all"]["rows"]) == evaluation["rows"] == 90
    (use,) = evaluation["experts"].values()
    assert use["groups"] == ["click", "buy", "value"]
    assert list(use["weight"]) == list(use["selected"]) == cells
    assert [sum(shares) for shares in use["weight"]["tab=1"]] == pytest.approx([1, 1, 1])

    run(experiment)
    page = folder / "report.html"
    assert capsys.readouterr().out.splitlines()[-1] == str(page)
    assert f"<h1>{experiment.name}</h1>" in page.read_text()


def test_a_run_that_was_never_trained_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(EXPERIMENT)
    assert cli.main(["report", str(file), f"output={tmp_path}/runs"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"manygate: There is nothing to report on in {tmp_path}/runs/tiny: ")
    assert "manygate train EXPERIMENT" in message and "Traceback" not in message


def test_overrides_name_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(EXPERIMENT)
    folder = tmp_path / "runs" / "other"
    folder.mkdir(parents=True)
    (folder / "experiment.yaml").write_text(dump_experiment(load_experiment(file, ["name=other"])))
    (folder / "metrics.jsonl").write_text(
        '{"kind": "train", "step": 1, "tasks": {"click": {"loss": 0.7, "auc": null}}}\n'
    )
    assert cli.main(["report", str(file), f"output={tmp_path}/runs", "name=other"]) == 0
    assert capsys.readouterr().out == f"{folder}/report.html\n"


def test_a_cluster_can_make_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    assert "report" in submission.JOBS
    job = cli.parse(["report", "tiny.yaml"])
    command = shlex.join(submission.entrypoint(job, job.experiment, load_experiment(job.experiment, [])))
    assert command == f"python -m jobs.cli report tiny.yaml --log-format json output={tmp_path}/runs"
