"""A checkpoint's predictions of a split as a folder of Parquet files, one per worker, with keys and labels.

Columns: the key columns, one column per scenario level, and for every task `label_TASK` and `prediction_TASK`: a
probability, or a value in the unit of the log's column. A label is null in a row without it. For every binary task that
has `after` there is also `prediction_TASK_given_AFTER`: its probability in case AFTER happens. The marker file and the
metadata of each Parquet file, under `manygate`, say for each of these columns what it is, such as "mean".
"""

import json
import logging
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.checkpoint.choice import CheckpointChoice
from pipeline.config.conditional_tasks import conditional_tasks, with_conditional_tasks
from pipeline.config.experiment import Experiment
from pipeline.errors import UserError
from pipeline.evaluation.log_unit import PROBABILITY, LogUnit, log_units
from pipeline.evaluation.predictions import PredictedBatch, predict
from pipeline.evaluation.split_evaluation import split_reader
from pipeline.log_records import log_fields
from pipeline.progress_bar import ProgressBar
from pipeline.scoring.restored_model import restored_model
from pipeline.scoring.smearing import smearing_of_checkpoint
from pipeline.table.manifest import read_manifest
from pipeline.table.target_quantiles import load_target_quantiles
from pipeline.workers.worker import Worker

DONE = "_predictions.json"  # written last. Readers of a Parquet folder skip names that begin with "_"
LABEL, PREDICTION, SCENARIO = "label_", "prediction_", "scenario_"  # + task or level: columns

log = logging.getLogger(__name__)


def clear_unfinished(output: str) -> None:
    """Deletes the files that an interrupted prediction has left.

    Raises:
        UserError: the folder holds finished predictions, or other files.
    """
    names = storage.list_folder(output)
    if any(not (name.startswith("part-") and name.endswith(".parquet")) for name in names):
        raise UserError(f"The output folder {output} is not empty: name another with --output, or empty it.")
    for name in names:
        storage.delete_file(output, name)


def predict_on_worker(
    worker: Worker, experiment: Experiment, checkpoint: CheckpointChoice, split: str, output: str
) -> int | None:
    """Writes this worker's file; the first worker returns the number of all rows, the others None."""
    log_fields.begin(experiment.name, worker.rank)
    for key in hidden_keys(experiment) if worker.is_first else ():
        log.warning(
            "The key column %r of the log is left out, because a column of the predictions has this name. To have it, "
            "rename it in the log and in logs.keys, and make the feature table and the run again.",
            key,
        )
    manifest = read_manifest(experiment.table_folder)
    model, saved = restored_model(experiment, manifest, checkpoint, worker)
    smearing = smearing_of_checkpoint(experiment, manifest, model, saved, worker)
    quantiles = load_target_quantiles(experiment.table_experiment, experiment.table_folder)
    units = log_units(experiment.tasks, experiment.scenarios, smearing, quantiles)
    reader = split_reader(experiment, experiment.table_folder, manifest, split, worker, experiment.logs.keys)
    rows, not_finite, writer = 0, 0, None
    with ExitStack() as open_files:
        bar = ProgressBar(f"predictions of {split}", manifest.rows(split), is_shown=worker.is_first)
        progress = open_files.enter_context(bar)
        for batch in predict(model.module, reader, worker.device, conditional_tasks(experiment.tasks)):
            table = prediction_table(batch, experiment, units)
            if writer is None:  # a worker without rows writes no file
                file = storage.join(output, f"part-{worker.rank:05d}.parquet")
                stream = open_files.enter_context(storage.open_output(file))
                writer = open_files.enter_context(pq.ParquetWriter(stream, table.schema))
            writer.write_table(table)
            rows += table.num_rows
            not_finite += count_not_finite(batch, table, experiment)
            progress.add(experiment.evaluation.batch_size)
    counts = worker.gather((rows, not_finite))
    summary = {"split": split, "checkpoint": saved.uri, "statistics": statistics_of(units)}
    total = worker.on_first(lambda: finish(counts or [], summary, output))
    return total if worker.is_first else None


def finish(counts: list[tuple[int, int]], summary: dict[str, Any], output: str) -> int:
    """Marks the predictions as complete, and returns their number.

    Args:
        counts: rows, and predictions that are not finite, of each worker.
        summary: the other contents of the marker file.
        output: the folder.

    Raises:
        UserError: some predictions are not finite.
    """
    rows, not_finite = (sum(column) for column in zip(*counts, strict=True))
    if not_finite:
        raise UserError(
            f"{not_finite} predictions are not finite numbers: training has probably diverged. Use an earlier "
            "checkpoint, or train with a lower learning rate."
        )
    storage.write_json(storage.join(output, DONE), {**summary, "rows": rows})
    return rows


def count_not_finite(batch: PredictedBatch, table: pa.Table, experiment: Experiment) -> int:
    """The number of predictions that are not finite, or whose values in the log's unit are too large for float64."""
    count = np.count_nonzero(~np.isfinite(batch.predictions.predictions))
    for column, task in enumerate(experiment.tasks):
        is_finite = np.isfinite(batch.predictions.predictions[:, column])
        count += np.count_nonzero(is_finite & np.isinf(table[PREDICTION + task.name].to_numpy()))
    return int(count)


def statistics_of(units: list[LogUnit]) -> dict[str, str]:
    """What the prediction of each task is, conditional tasks included."""
    conditional = conditional_tasks([unit.task for unit in units])
    return {unit.task.name: unit.statistic for unit in units} | {of.config.name: PROBABILITY for of in conditional}


def hidden_keys(experiment: Experiment) -> list[str]:
    """Key columns of the log that have the name of a scenario, a label or a prediction, and are left out."""
    own = {SCENARIO + scenario.name for scenario in experiment.scenarios}
    own |= {LABEL + task.name for task in experiment.tasks}
    own |= {PREDICTION + task.name for task in with_conditional_tasks(experiment.tasks)}
    return [key for key in experiment.logs.keys if key in own]


def prediction_table(batch: PredictedBatch, experiment: Experiment, units: list[LogUnit]) -> pa.Table:
    """The rows of one batch: keys, scenarios, labels and predictions."""
    columns = dict(zip(batch.keys.column_names, batch.keys.columns, strict=True)) if batch.keys is not None else {}
    for key in hidden_keys(experiment):
        del columns[key]
    for level, scenario in enumerate(experiment.scenarios):
        labels = pa.array(scenario.labels).take(pa.array(batch.predictions.scenarios[:, level]))
        columns[SCENARIO + scenario.name] = labels
    rows = batch.predictions
    for column, unit in enumerate(units):
        values, references, name = rows.predictions[:, column], rows.references_of(column), unit.task.name
        labels = unit.labels(rows.labels[:, column], references)
        predicted = unit.predictions(values, rows.scenarios, rows.deviations_of(column), references)
        columns[LABEL + name] = pa.array(labels, mask=np.isnan(labels))
        # Where a reference cannot be used. A prediction that is not a number stays one that is counted as not finite.
        unknown = np.isnan(predicted) & ~np.isnan(values)
        columns[PREDICTION + name] = pa.array(predicted, mask=unknown if unknown.any() else None)
    for column, conditional in enumerate(conditional_tasks(experiment.tasks), start=len(units)):
        columns[PREDICTION + conditional.config.name] = pa.array(rows.predictions[:, column])
    return pa.table(columns, metadata={"manygate": json.dumps({"statistics": statistics_of(units)})})
