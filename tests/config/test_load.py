"""The experiment file: what is accepted, and how each mistake is reported."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.load import dump_experiment, load_experiment, parse_experiment
from pipeline.config.logs import TaskConfig
from pipeline.errors import UserError
from pipeline.features.categorical import CategoricalFeature
from pipeline.metrics.registry import METRICS
from tests import synthetic

EXAMPLE = Path("examples/kuairand/experiment.yaml")


def load(**changes: Any) -> Any:
    """The bundled example with sections replaced."""
    return parse_experiment({**yaml.safe_load(EXAMPLE.read_text()), **changes}, "it.yaml")


def override(*overrides: str) -> Any:
    return load_experiment(EXAMPLE, list(overrides))


def test_the_bundled_example_is_valid_and_survives_a_round_trip() -> None:
    experiment = load_experiment(EXAMPLE)
    assert parse_experiment(yaml.safe_load(dump_experiment(experiment)), "again") == experiment
    assert experiment.folder == "runs/kuairand"
    assert experiment.scenarios[0].labels == ["tab=1", "tab=0", "tab=4", "tab=6", "tab=2", "tab=other"]


def test_overrides_reach_every_level() -> None:
    changed = override(
        "training.epochs=3",
        "training.schedule.decay=cosine",
        "features.user.dim=32",
        "features.1.column=other_column",
        "tasks.click.weight=2.5",
        "logs.splits.test=[20220505, 20220506]",
        "training.early_stopping=null",
        "model.trunk={kind: shared_bottom, hidden: [8]}",
        "name=other",
    )
    assert changed.training.epochs == 3 and changed.training.schedule.decay == "cosine"
    user = changed.features[0]
    assert isinstance(user, CategoricalFeature) and user.dim == 32
    assert changed.features[1].column == "other_column"
    assert changed.tasks[0].weight == 2.5
    assert changed.logs.splits["test"] == (20220505, 20220506)
    assert changed.training.early_stopping is None
    assert changed.model.trunk.kind == "shared_bottom"
    assert changed.folder == "runs/other"


def test_an_override_makes_the_sections_that_it_needs() -> None:
    experiment = synthetic.experiment(Path("x"))
    data = yaml.safe_load(dump_experiment(experiment))
    del data["training"]
    from pipeline.config.load import apply_override

    apply_override(data, "training.schedule.warmup_steps=7")
    assert parse_experiment(data, "it").training.schedule.warmup_steps == 7


BOOLEANS = [
    spelled
    for word in ("yes", "no", "on", "off", "true", "false")
    for spelled in (word, word.capitalize(), word.upper())
]
TEXT_PLACES = [
    *("name", "logs.path", "logs.keys", "logs.partition", "scenarios.0.values", "scenarios.0.name"),
    *("features.0.column", "features.1.name", "tasks.1.after", "table.path", "logs.splits.train"),
]
LISTS = {"logs.keys": "[user_id, {}]", "scenarios.0.values": "[SE, {}, DK]", "logs.splits.train": "[{}, b]"}


@pytest.mark.parametrize("place", TEXT_PLACES)
@pytest.mark.parametrize("spelled", [*BOOLEANS, "~", "null", "Null", "NULL", "12", "1.5"])
def test_what_yaml_makes_of_a_text_without_quotes_is_one_line_whose_advice_holds(place: str, spelled: str) -> None:
    is_null = spelled in ("~", "null", "Null", "NULL")
    if (is_null and place in ("tasks.1.after", "table.path")) or (spelled == "12" and place in NUMBERS_TOO):
        return  # a valid value
    template = LISTS.get(place, "{}")
    with pytest.raises(UserError) as caught:
        override(f"{place}={template.format(spelled)}")
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    at = place + (
        ".1" if place in ("logs.keys", "scenarios.0.values") else ".0" if place == "logs.splits.train" else ""
    )
    assert len(lines) == 1 and lines[0].startswith(f"{at}: "), lines
    if spelled in BOOLEANS:
        value = str(yaml.safe_load(spelled)).lower()
        assert f" {spelled.lower()}" in lines[0] and f"without quotes as {value}: put a text in quotes" in lines[0]
    else:
        assert "in quotes" in lines[0]
    try:
        override(f"{place}={template.format(repr(spelled))}")
    except UserError as error:  # another rule, such as that of names
        assert "YAML" not in str(error) and "quotes" not in str(error)


NUMBERS_TOO = ("scenarios.0.values", "logs.splits.train")


def test_booleans_of_a_scenario_column_have_advice_that_holds() -> None:
    with pytest.raises(UserError, match="for a column of booleans, write 1 and 0"):
        override("scenarios.tab.values=[true, false]")
    assert override("scenarios.tab.values=[1, 0]").scenarios[0].values == [1, 0]


def test_a_boolean_at_a_place_of_something_else_says_what_yaml_did() -> None:
    for place in ("training.epochs", "training.clip_norm", "training.schedule.decay", "training.loop"):
        with pytest.raises(UserError, match=rf"{place}: .*; found false \(YAML reads no, off and false, also in capit"):
            override(f"{place}=off")
    assert override("checkpoint.background=no").checkpoint.background is False


@pytest.mark.parametrize("spelled", [*BOOLEANS, "~", "null"])
def test_a_key_that_yaml_reads_as_a_boolean_is_refused(spelled: str, tmp_path: Path) -> None:
    """As the name of a split it would become `true`, without a word."""
    splits = "{train: [20220425, 20220426], KEY: [20220501, 20220502]}"
    with pytest.raises(UserError, match=f"YAML reads the key {spelled} without quotes as (true|false|null)"):
        override(f"logs.splits={splits.replace('KEY', spelled)}")
    if spelled != "~":
        quoted = override(f"logs.splits={splits.replace('KEY', repr(spelled))}", "training.early_stopping=null")
        assert spelled in quoted.logs.splits


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.epoch=3"], r"training\.epoch: unknown key; did you mean 'epochs'\?"),
        (["trainning.epochs=3"], r"trainning: unknown key; did you mean 'training'\?"),
        (["training.epochs=many"], r"training\.epochs: input should be a valid integer; found 'many' \(str\)"),
        (["training.epochs='3'"], r"training\.epochs: input should be a valid integer; found '3' \(str\)"),
        (["training.epochs=0"], r"training\.epochs: input should be greater than or equal to 1; found 0"),
        (["features.user.dims=3"], r"features\.0\.dims: unknown key; did you mean 'dim'\?"),
        (["features.user.kind=categorial"], r"features\.0\.kind: .* found 'categorial'; did you mean 'categorical'\?"),
        (["model.trunk.kind=mmoo"], r"model\.trunk\.kind: expected one of .*mmoe.*; did you mean 'mmoe'\?"),
        (["model.trunk.expert=3"], r"model\.trunk\.expert: unknown key; did you mean 'experts'\?"),
        (["features.watched.shares=vidio"], r"features\.19\.shares: .*'vidio'; did you mean 'video'\?"),
        (["features.user.ids={}"], r"give exactly one of"),
        (["features.user.ids={hash: 5, vocabulary: {}}"], r"give exactly one of"),
        (["features.duration.dim=null"], r"`dim` is required with `quantiles`"),
        (["tasks.long_view.after=clik"], r"tasks\.1\.after: 'clik' is not a task above .*; did you mean 'click'"),
        (["tasks.click.after=long_view"], r"tasks\.0\.after: 'long_view' is not a task above"),
        (["tasks.click.only={tabs: [1]}"], r"tasks\.0\.only: 'tabs' is not a level of the sc.*; did you mean 'tab'\?"),
        (["tasks.click.only={tab: [1, 44]}"], r"tasks\.0\.only\.tab: 44 is not a value of this level; did.* '4'"),
        (["tasks.click.only={tab: []}"], r"tasks\.0\.only\.tab: list should have at least 1 item"),
        (
            ["scenarios.tab.other=drop", "tasks.click.only={tab: [other]}"],
            r"tasks\.0\.only\.tab: 'other' is not a value of this level; known: 1, 0, 4, 6, 2",
        ),
        (["tasks.click.missing=ignore"], r"tasks\.0\.missing: input should be 'quarantine' or 'skip'; found 'ignore'"),
        (["logs.negatives={task: clik, keep: 0.1}"], r"logs\.negatives\.task: no task .*'clik'; did you mean 'click'"),
        (
            ["logs.negatives={task: watch_time, keep: 0.1}"],
            r"logs\.negatives\.task: 'watch_time' is continuous, and only a binary task has negatives",
        ),
        (["logs.negatives={task: click, keep: 0}"], r"logs\.negatives\.keep: input should be greater than 0; found 0"),
        (["logs.negatives={task: click, keep: 10}"], r"logs\.negatives\.keep: input should be less than or equal to 1"),
        (
            ["logs.weight=w", "tasks.click.sample_weight=w"],
            r"tasks\.0\.sample_weight: 'w' is already logs\.weight, and the two are multiplied: remove one of them",
        ),
        (["tasks.click.scale=2"], r"tasks\.0: `scale`, `transform` and `loss` belong to continuous tasks"),
        (["features.hour.column=is_click"], r"'is_click' is the label of task 'click' and cannot be an input"),
        (["features.hour.name=user"], r"features: duplicate name 'user'"),
        (["table.lanes=6"], r"table: `lanes` must be a power of two; 6 is not"),
        (["training.global_batch_size=1001"], r"1001 is not a multiple of table\.lanes \(8\).*use 1000"),
        (["training.early_stopping.metric=clik.auc"], r"no task is called 'clik'; did you mean 'click'"),
        (["model.bottom.target=vidio"], r"model\.bottom\.target: .*'vidio'; did you mean 'video'"),
        (["evaluation.group=user"], r"evaluation\.group: 'user' is not one of logs\.keys"),
        (["logs.splits.test=[20220504, 20220508]"], r"splits `valid` and `test` overlap"),
        (["logs.splits.test=[20220508, 20220505]"], r"split `test` ends \(20220505\) before it begins"),
        (["logs.splits={test: [1, 2]}"], r"`splits` needs a `train` range"),
        (["features.usr.dim=3"], r"no element 'usr'; did you mean 'user'"),
        (["features.hour.name=type"], r"features\.18\.name: PyTorch reserves the name 'type'"),
        (["scenarios.tab.values=[1, other]"], r"scenarios\.0: two scenarios .* the same name"),
        (["scenarios.tab.values=[1, 1]"], r"scenarios\.0: two scenarios .* the same name"),
        (["logs.keys=[user_id, user_id]"], r"logs: `keys` names a column twice"),
        (["model.trunk.hidden=[0]"], r"model\.trunk\.hidden\.0: .* greater than or equal to 1"),
        (["model.trunk={kind: mmoe, hidden: []}"], r"model\.trunk\.hidden: .* at least 1 item"),
        (["tasks.watch_time.loss=ziln"], r"tasks\.2: loss `ziln` models the amount itself: remove `transform: log1p`"),
        (["tasks.watch_time={name: w, column: w, kind: continuous, loss: lognormal}"],
         r"tasks\.2: loss `lognormal` models a logarithm: add `transform: log1p`"),
        (["tasks.watch_time.power=1.2"], r"tasks\.2: `power` belongs to `loss: tweedie`"),
        (["model.objective.gradients={kind: core, core: clik}"], r"core: no task is called 'clik'; .*'click'"),
        (["tasks.watch_time={name: watch_time, column: w, kind: continuous, after: long_view, loss: ziln}",
          "model.objective.weighting=uncertainty"], r"the loss `ziln` of 'watch_time' can fall below zero"),
        (["model.trunk={kind: htlnet}", "tasks.watch_time.weight=0"], r"the core task 'watch_time' has the weight 0"),
        (["tasks.click.prediction=median"], r"tasks\.0: `prediction: median` belongs to .* `transform: log1p`"),
        (["tasks.watch_time={name: w, column: w, kind: continuous}", "training.early_stopping.metric=w.rmse_log_unit"],
         r"'rmse_log_unit' cannot be used for .* 'w'; use one of rmse, mae, nrmse, nmae, spearman, gini"),
        (["training.early_stopping.metric=click.rmse"], r"'rmse' cannot be used for .* the binary task 'click'"),
        (["training.early_stopping.metric=click.grouped_auc", "evaluation.group=null"], r"or set evaluation\.group"),
        (["name.x=3"], r"name is a single value|single value"),
        (["name"], r"'name' is not an override: expected key=value"),
        (["name=[1"], r"not valid YAML"),
        (["name=a/b"], r"name: string should match pattern"),
    ],
)  # fmt: skip
def test_mistakes_are_reported_with_their_path(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(*overrides)


def test_splits_are_compared_as_numbers_and_numbers_may_be_short() -> None:
    splits = override("logs.splits={train: [2, 9], valid: [10, 12], test: [13, 100]}").logs
    assert [splits.split_of(value) for value in ("2", "9", "10", "100", "101")] == [
        "train", "train", "valid", "test", None,
    ]  # fmt: skip
    assert override("training.dense_optimizer.lr=1e-3").training.dense_optimizer.lr == 0.001


@pytest.mark.parametrize("task", load().tasks, ids=lambda task: task.name)
def test_early_stopping_can_use_every_metric_that_ranks(task: TaskConfig) -> None:
    for metric in METRICS.values():
        if task.kind in metric.kinds and metric.ranks:
            assert override(f"training.early_stopping.metric={task.name}.{metric.name}")
        else:
            with pytest.raises(UserError, match=f"'{metric.name}' cannot be used for early stopping"):
                override(f"training.early_stopping.metric={task.name}.{metric.name}")


def test_a_missing_section_is_reported() -> None:
    data = yaml.safe_load(EXAMPLE.read_text())
    del data["tasks"]
    with pytest.raises(UserError, match="tasks: missing: this key is required"):
        parse_experiment(data, "it.yaml")


def test_all_mistakes_are_reported_together() -> None:
    with pytest.raises(UserError) as error:
        override("training.epoch=3", "training.device=gpu")
    assert "training.epoch:" in str(error.value) and "training.device:" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "expected an experiment .* found list"),
        ("name: a\nname: b\n", "duplicate key 'name'"),
        ("name: [\n", "not valid YAML"),
        ("name: !!python/object/apply:os.system [echo]\n", "not valid YAML"),
        ("\tname: a\n", "not valid YAML"),
    ],
)
def test_files_that_are_not_an_experiment(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "it.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        load_experiment(file)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(UserError, match="Cannot read the experiment file"):
            load_experiment(path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="Cannot read the experiment file"):
        load_experiment(tmp_path / "binary.yaml")


def test_commands_that_need_no_torch_do_not_import_it() -> None:
    """Importing torch would take most of the time of commands that need none."""
    jobs = "jobs.doctor, jobs.inspect, jobs.preprocess, jobs.report, jobs.submit, jobs.submitted"
    modules = f"pipeline.config.load, pipeline.comparison.variants, jobs.cli, {jobs}"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_keys_of_a_task_are_written_in_their_order() -> None:
    keys = ["name", "column", "kind", "after", "scale", "transform", "weight", "loss", "delta", "power"]
    written = TaskConfig(name="t", column="c", kind="binary").model_dump()
    assert [key for key in written if key in keys] == keys


def test_sizes_of_memory_are_texts_with_units_or_bytes() -> None:
    cluster = override("cluster.memory_per_worker=16GiB", "cluster.memory_per_task=1000000").cluster
    assert (cluster.memory_per_worker, cluster.memory_per_task) == (16 * 2**30, 10**6)
    again = parse_experiment(yaml.safe_load(dump_experiment(override("cluster.memory_per_worker=16GiB"))), "again")
    assert again.cluster.memory_per_worker == 16 * 2**30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("memory_per_worker=16 gigabytes", r"cluster.memory_per_worker: '16 gigabytes' is not a size: write it as"),
        ("memory_per_task=0", r"cluster.memory_per_task: .*greater than or equal to 1"),
        ("memory_per_task=true", r"cluster.memory_per_task: .*valid integer"),
        ("cpus_per_worker=0.5", r"cluster.cpus_per_worker: .*valid integer"),
        ("gpus_per_worker=0", r"cluster.gpus_per_worker: .*greater than or equal to 1"),
        ("placement=packed", r"cluster.placement: .*'pack' or 'spread'"),
        ("memory_per_workers=16GiB", r"unknown key; did you mean 'memory_per_worker'"),
    ],
)
def test_mistakes_in_the_cluster_section(change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(f"cluster.{change}")
