"""Comparing models: whole comparisons on small logs, stopped, extended, and with wrong arguments."""

import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from cluster import submission
from jobs import cli, preprocess
from pipeline.checkpoint.choice import CheckpointChoice
from pipeline.config.experiment import Experiment
from pipeline.config.load import load_experiment
from pipeline.errors import UserError
from pipeline.evaluation.evaluation import Evaluation, read_evaluation
from pipeline.report.comparison import compare
from pipeline.table.settings import fingerprint, table_settings
from pipeline.training import run as training_run
from pipeline.workers.stop import INTERRUPTED_EXIT_CODE
from pipeline.workers.worker import Worker
from tests import synthetic
from tests.commands import Answer, manygate, start_manygate
from tests.object_store import BUCKET, object_store
from tests.tiny import EXPERIMENT
from tests.training.runs import metrics

ROWS = 240  # per day


def write_logs(folder: Path) -> None:
    """Four days in which the click depends on user and item. On the third day nobody clicks in the search."""
    rng = np.random.default_rng(0)
    user_likes, item_is_liked = rng.normal(size=20), rng.normal(size=12)
    for day in range(1, 5):
        user, item = rng.integers(0, 20, ROWS), rng.integers(0, 12, ROWS)
        place = rng.choice(["home page", "search", "mail"], ROWS)
        score = user_likes[user] + item_is_liked[item]
        click = rng.random(ROWS) < 1 / (1 + np.exp(-2 * score))
        if day == 3:
            click &= place != "search"
        columns = {"u": user, "i": item, "place": place, "c": click, "v": np.where(click, np.exp(score), 0)}
        file = folder / f"day={day}" / "part.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(pa.table(columns), file)


def write_experiment(folder: Path) -> Path:
    ids = {"vocabulary": {}}
    data = {
        "name": "small",
        "output": str(folder / "runs"),
        "logs": {
            "path": str(folder / "log"),
            "partition": "day",
            "splits": {"train": [1, 2], "valid": [3, 3], "test": [4, 4]},
        },
        "table": {"lanes": 4},
        "features": [
            {"name": "user", "column": "u", "kind": "categorical", "ids": ids, "dim": 4},
            {"name": "item", "column": "i", "kind": "categorical", "ids": ids, "dim": 4},
        ],
        "scenarios": [{"name": "place", "column": "place", "values": ["home page", "search", "nowhere"]}],
        "tasks": [
            {"name": "click", "column": "c", "kind": "binary"},
            {"name": "value", "column": "v", "kind": "continuous", "transform": "log1p", "after": "click"},
        ],
        "model": {"trunk": {"kind": "mmoe", "experts": 2, "hidden": [8]}, "head": {"kind": "towers", "hidden": [4]}},
        "training": {
            "global_batch_size": 64,
            "epochs": 2,
            "device": "cpu",
            "early_stopping": {"metric": "click.auc", "patience": 5},
        },
        "evaluation": {"batch_size": 64},
    }
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(data))
    return file


@dataclass(frozen=True)
class Compared:
    """A finished comparison, in the state right after it."""

    file: Path  # of the experiment
    folder: Path  # of its run
    answer: Answer
    result: dict[str, Any]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, ray_is_up: None) -> Compared:
    """Two trunks with two seeds and the reference, starting from the logs."""
    folder = tmp_path_factory.mktemp("compare")
    write_logs(folder / "log")
    file = write_experiment(folder)
    answer = manygate("compare", str(file), "--trunks", "shared_bottom,mmoe", "--seeds", "0,1", "--reference")
    assert answer.code == 0, answer.err
    run = folder / "runs/small"
    return Compared(file, run, answer, json.loads((run / "compare.json").read_text()))


def times(folder: Path) -> dict[str, int]:
    """When each file of the comparison's runs was written."""
    return {str(path): path.stat().st_mtime_ns for path in (folder / "compare").rglob("*") if path.is_file()}


def evaluation(folder: Path, run: str) -> Evaluation:
    read = read_evaluation(str(folder / "compare" / run / "evaluation-test.json"))
    assert read is not None
    return read


def test_one_command_makes_tables_runs_and_the_comparison(compared: Compared) -> None:
    """The evaluations of ordinary runs are compared; a place without rows has no reference."""
    folder, result = compared.folder, compared.result
    assert "2 variants and 6 references, with the seeds 0, 1: 16 runs" in compared.answer.err
    assert "place=nowhere has no rows in the split test, train, valid: no reference for value" in compared.answer.err
    assert "Run 12 of 12 finished: place-search-value-seed-1" in compared.answer.err
    variants = {
        name: {seed: evaluation(folder, f"{name}-seed-{seed}") for seed in (0, 1)} for name in ("shared_bottom", "mmoe")
    }
    reference = {
        (task, label): {seed: evaluation(folder, f"reference/{name}-{task}-seed-{seed}") for seed in (0, 1)}
        for label, name in (("place=home page", "place-home_page-0"), ("place=search", "place-search"))
        for task in ("click", "value")
    }
    expected = json.loads(json.dumps(compare(variants, reference)))
    assert result == {"experiment": "small", "split": "test", **expected, "seconds": result["seconds"]}
    assert (result["baseline"], result["seeds"], result["rows"]) == ("shared_bottom", [0, 1], ROWS)
    assert all(result["seconds"][name] > 0 for name in ("shared_bottom", "mmoe"))
    for (task, label), runs in reference.items():
        measured = runs[0].tasks[task]
        metric = result["metric_of_task"][task]
        assert measured.scenarios.keys() == {label}
        assert measured.overall[metric] == measured.scenarios[label][metric] is not None
        assert result["variants"]["mmoe"]["tasks"][task][label]["transfer"] is not None
    assert compared.answer.out.endswith("\n" + (folder / "compare.md").read_text())
    assert "small, test split, 240 rows" in compared.answer.out


def test_the_best_checkpoint_is_evaluated_if_there_is_one(compared: Compared) -> None:
    """On the third day no search was clicked, so that the click of the search has no AUC."""
    for run in ("mmoe-seed-0", "reference/place-search-click-seed-0"):
        folder = compared.folder / "compare" / run
        latest = sorted((folder / "checkpoints").iterdir())[-1]
        best = json.loads((latest / "state.json").read_text())["progress"]["best_step"]
        assert (best is None) == ("search" in run)
        wanted = latest.name if best is None else f"step-{best:08d}"
        assert Path(evaluation(compared.folder, run).checkpoint).name == wanted


def test_finished_runs_are_reused_and_only_the_rest_is_trained(compared: Compared) -> None:
    command = ["compare", str(compared.file), "--trunks", "shared_bottom,mmoe", "--reference", "--seeds"]
    before, file = times(compared.folder), compared.folder / "compare.json"
    again = manygate(*command, "0,1")
    assert again.code == 0 and "Already finished and reused (12)" in again.err
    assert times(compared.folder) == before
    assert json.loads(file.read_text()) == compared.result
    assert again.out == compared.answer.out[-len(again.out) :]

    more = manygate(*command, "0,1,2")
    assert more.code == 0 and "Run 18 of 18 finished" in more.err
    after = times(compared.folder)
    assert {name: after[name] for name in before} == before
    result = json.loads(file.read_text())
    for variant in ("shared_bottom", "mmoe"):
        values = result["variants"][variant]["tasks"]["click"]["all"]["values"]
        assert values[:2] == compared.result["variants"][variant]["tasks"]["click"]["all"]["values"]
        assert len(values) == 3


def test_a_run_without_its_evaluation_is_evaluated_and_not_trained(compared: Compared) -> None:
    """The advice of docs/metrics.md where an evaluation of an earlier version lacks a metric."""
    folder = compared.folder / "compare/mmoe-seed-0"
    (folder / "evaluation-test.json").unlink()
    log = (folder / "metrics.jsonl").read_bytes()
    again = manygate("compare", str(compared.file), "--trunks", "shared_bottom,mmoe", "--reference", "--seeds", "0,1")
    assert again.code == 0 and "Already finished and reused (11)" in again.err
    assert (folder / "evaluation-test.json").exists() and (folder / "metrics.jsonl").read_bytes() == log
    assert json.loads((compared.folder / "compare.json").read_text()) == compared.result


def test_a_resumed_comparison_equals_one_that_was_never_stopped(
    compared: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM in the second run: it saves, the comparison exits with 75, and the same command continues from there."""
    where = [f"output={tmp_path}", f"table.path={compared.folder}/table"]
    command = ["compare", str(compared.file), "--variant", "mmoe: model.trunk.experts=2", "--seeds", "0,1", *where]
    whole = training_run.train_on_worker

    def train_until_stopped(worker: Worker, experiment: Experiment, resume: CheckpointChoice) -> Any:
        if experiment.training.seed == 1:
            worker.stop.request()
        return whole(worker, experiment, resume)

    with monkeypatch.context() as patched:
        patched.setattr(training_run, "train_on_worker", train_until_stopped)
        stopped = manygate(*command)
    assert stopped.code == INTERRUPTED_EXIT_CODE and "The comparison was stopped in mmoe-seed-1" in stopped.err
    result = json.loads((tmp_path / "small/compare.json").read_text())
    assert result["variants"]["mmoe"]["seeds"] == [0]

    resumed = manygate(*command)
    assert resumed.code == 0 and "finished and reused (1): mmoe-seed-0." in resumed.err and "exactly" in resumed.err
    assert not (tmp_path / "small/table").exists()
    overrides = [f"output={compared.folder}/compare", "name=mmoe-seed-1"]
    straight = load_experiment(compared.file, overrides)
    assert metrics(load_experiment(compared.file, [f"output={tmp_path}/small/compare", *overrides[1:]])) == metrics(
        straight
    )
    result = json.loads((tmp_path / "small/compare.json").read_text())
    for task in ("click", "value"):
        for cell, found in result["variants"]["mmoe"]["tasks"][task].items():
            assert found["values"] == compared.result["variants"]["mmoe"]["tasks"][task][cell]["values"]
    fresh = json.loads((tmp_path / "small/compare/mmoe-seed-0/timing.json").read_text())["training_seconds"]
    assert result["seconds"] == {"mmoe": fresh}, "of the runs that were not stopped"


def test_a_run_of_another_experiment_is_not_reused(compared: Compared) -> None:
    before = times(compared.folder)
    answer = manygate("compare", str(compared.file), "--trunks", "mmoe", "--seeds", "0", "training.epochs=3")
    assert answer.code == 2
    assert "compare/mmoe-seed-0 is a run of another experiment: training.epochs: 2 -> 3. Delete that fo" in answer.err
    assert times(compared.folder) == before


def test_a_variant_that_diverged_is_trained_again_with_lower_rates(compared: Compared, tmp_path: Path) -> None:
    """As the message says: with the rates in its variant, after its folder is deleted."""
    rates = "wild: checkpoint.every_steps=1 training.dense_optimizer.kind=sgd training.dense_optimizer.lr="
    start = ("compare", str(compared.file), f"output={tmp_path}", "--seeds", "0", "--trunks", "mmoe", "--variant")
    failed = manygate(*start, f"{rates}1e30")
    assert failed.code == 2 and "1 of 2 runs failed (see above): wild-seed-0" in failed.err
    assert "give them to its --variant, and delete the folder of the run" in failed.err
    assert manygate(*start, f"{rates}0.01").code == 2, "the folder is of another experiment"
    shutil.rmtree(tmp_path / "small/compare/wild-seed-0")
    assert manygate(*start, f"{rates}0.01").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Nothing to compare: name models with --trunks"),
        (["--trunks", "mmeo"], "there is no trunk 'mmeo'; did you mean 'mmoe'?"),
        (["--trunks", "mmoe", "--seeds", "0,x"], "'x' is not a seed"),
        (["--trunks", "mmoe", "--seeds", "0,0"], "a seed appears twice"),
        (["--trunks", "mmoe,mmoe"], "Two variants are called 'mmoe'"),
        (["--trunks", "mmoe", "--split", "tset"], "no split 'tset'; did you mean 'test'?"),
        (["--variant", "training.epochs=3"], "expected 'NAME: key=value key=value'"),
        (["--variant", "a: training.epochs"], "'training.epochs' is not an override"),
        (["--trunks", "mmoe", "--variant", "a: 'model.bottom={kind: din, target: item}'"], "of kind `sequence`"),
        (["--variant", "a: features.user.column=i"], "variant a needs another feature table (features.user.column: "),
        (["--variant", "a: logs.splits.test=[4,9]"], "variant a needs another feature table (logs.splits.test: "),
        (["--variant", "a: table.path=elsewhere"], "variant a needs another feature table (table.path: "),
    ],
)
def test_mistakes_are_reported_before_anything_is_made(tmp_path: Path, arguments: list[str], message: str) -> None:
    file = write_experiment(tmp_path)
    answer = manygate("compare", str(file), *arguments)
    assert answer.code == 2 and message in answer.err and "Traceback" not in answer.err
    assert list(tmp_path.iterdir()) == [file]


def test_torchrun_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    answer = manygate("compare", str(write_experiment(tmp_path)), "--trunks", "mmoe")
    assert answer.code == 2 and "in place of torchrun" in answer.err


def test_the_flags_reach_a_cluster_as_they_were_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(EXPERIMENT)
    given = [
        "--variant",
        "a: 'model.trunk={kind: mmoe}'",
        "--trunks",
        "mmoe,ple",
        "--variant",
        "b: model.trunk.dropout=.1",
    ]
    job = cli.parse(["compare", "tiny.yaml", *given, "--reference", "--workers", "2", "table.path=shared/table"])
    command = submission.entrypoint(job, "tiny.yaml", load_experiment("tiny.yaml", job.overrides))
    sent = cli.parse(shlex.split(shlex.join(command))[3:])
    assert sent.models == job.models == list(zip(given[::2], given[1::2], strict=True))
    assert (sent.reference, sent.seeds, sent.workers, sent.launcher) == (True, "0,1,2", 2, "ray")
    assert sent.overrides[-2:] == [f"output={tmp_path}/runs", f"table.path={tmp_path}/shared/table"]


@pytest.mark.ray
def test_a_comparison_in_a_store_that_is_named_by_the_options_of_its_uri(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables, runs, references and results are below `output`; nothing else tells the processes of the store."""
    write_logs(tmp_path / "log")
    file = write_experiment(tmp_path)
    with object_store() as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        output = f"s3://{BUCKET}/named?endpoint_override={store.endpoint.removeprefix('http://')}&scheme=http"
        options = ["--trunks", "shared_bottom,mmoe", "--seeds", "0", "--reference", f"output={output}"]
        for answer in ("Run 6 of 6 finished", "Already finished and reused (6)"):
            process = start_manygate("compare", str(file), *options, output=tmp_path / answer)
            process.join(300)
            printed = (tmp_path / answer).read_text()
            assert process.exitcode == 0 and answer in printed, printed
            is_first = answer.startswith("Run")
            assert ("No TensorBoard curves are written to s3://" in printed) == is_first
        keys = set(store.all_keys())
        result = json.loads(store.content("named/small/compare.json"))
    runs = [f"compare/{trunk}-seed-0" for trunk in ("shared_bottom", "mmoe")]
    runs += [f"compare/reference/place-search-{task}-seed-0" for task in ("click", "value")]
    files = [f"{run}/evaluation-test.json" for run in runs]
    files += ["compare.md", "table/manifest.json", "compare/reference/place-search-table/manifest.json"]
    assert {f"named/small/{name}" for name in files} <= keys
    assert all(key.startswith("named/small/") and "?" not in key for key in keys)
    assert result["variants"].keys() == {"shared_bottom", "mmoe"} and result["rows"] == ROWS


def test_the_path_of_a_table_is_not_part_of_its_settings() -> None:
    """Tables that were made before this key existed do not have it in their settings."""
    here = synthetic.experiment(Path("x"))
    there = synthetic.experiment(Path("x"), table={"path": "elsewhere"})
    assert table_settings(there)["table"] == {"lanes": 4, "seed": 0, "row_group_rows": 16}
    assert fingerprint(table_settings(there)) == fingerprint(table_settings(here))
    assert (here.table_folder, there.table_folder) == ("x/synthetic/table", "elsewhere")


def test_overwrite_deletes_no_folder_that_is_not_a_table(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("years of work")
    experiment = synthetic.experiment(tmp_path / "runs", table={"path": str(tmp_path)})
    with pytest.raises(UserError, match="would delete .* which is not a feature table: it contains 'precious.txt'"):
        preprocess.run(experiment, overwrite=True)
    assert (tmp_path / "precious.txt").exists()
