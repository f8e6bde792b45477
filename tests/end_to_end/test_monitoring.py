"""A training run on Ray as its log, its screen and its Prometheus series show it."""

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray

from cluster.gauges import GAUGES, samples
from cluster.job_screen import JobState, read_log, screen
from pipeline.config.load import dump_experiment
from pipeline.job_progress import MachineWorkers
from tests.commands import Answer, manygate
from tests.training.runs import new_run

GUARD_S = 120  # Ray exports every few seconds; this ends a test that would wait for ever
SECTIONS = {
    "name": "monitored",
    "training": {"epochs": 3, "log_every_steps": 5, "validate_every_steps": 10},
    "checkpoint": {"every_steps": 10},
}


@pytest.fixture(scope="module")
def answer(ray_is_up: None, tmp_path_factory: pytest.TempPathFactory) -> Answer:
    folder = tmp_path_factory.mktemp("monitored")
    (folder / "experiment.yaml").write_text(dump_experiment(new_run(folder, **SECTIONS)))
    arguments = ("--launcher", "ray", "--workers", "2", "--log-format", "json")
    return manygate("train", str(folder / "experiment.yaml"), *arguments, check=0)


def test_log_lines_of_workers_have_run_worker_and_step(answer: Answer) -> None:
    documents = [json.loads(line) for line in answer.err.splitlines()]
    steps = [document for document in documents if re.match(r"step \d+/", document["text"])]
    assert [document["step"] for document in steps] == [5, 10, 15, 20, 25, 30, 35]
    assert {(document["run"], document["worker"]) for document in steps} == {("monitored", 0)}
    assert documents[-1]["text"] == "Training finished at step 36 of 36."


def test_status_shows_what_the_log_reports(answer: Answer) -> None:
    log = read_log(answer.err)
    progress = log.progress
    assert (progress.step, progress.total_steps, progress.restarts) == (36, 36, 0)
    assert progress.workers == [MachineWorkers(machine="127.0.0.1", count=2)]
    assert progress.data_wait is not None and 0 < progress.data_wait < 1
    assert progress.checkpoint is not None and progress.checkpoint.step == 36
    assert Path(progress.checkpoint.uri, "complete.json").exists()
    assert progress.validation_step == 36
    text = screen(JobState("job", "RUNNING", "train", 1.0, None, None), log, progress.checkpoint.time or 0)
    assert "training      step 36 of 36 (100%)" in text and "workers       2: 2 on 127.0.0.1" in text
    assert "checkpoint    step 36, 0 s ago" in text and "  click       loss 0." in text


def test_prometheus_series_have_the_values_of_the_log(answer: Answer) -> None:
    expected = {(s.name, *sorted(s.labels.items())): s.value for s in samples(read_log(answer.err).progress)}
    deadline = time.monotonic() + GUARD_S
    found: dict[tuple[object, ...], float] = {}
    while found != pytest.approx(expected) and time.monotonic() < deadline:
        time.sleep(0.5)
        found = series("monitored")
    assert found == pytest.approx(expected)


def series(run: str) -> dict[tuple[object, ...], float]:
    """The values of a run's series at the metrics ports of Ray's machines, by name and labels."""
    found: dict[tuple[object, ...], float] = {}
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        for name, inside, value in re.findall(r"^ray_(manygate_\w+){(.*)} (\S+)$", text, re.MULTILINE):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', inside))
            if labels["run"] == run:
                own = {label: labels[label] for label in GAUGES[name][1]}
                found[(name, *sorted(own.items()))] = float(value)
    return found
