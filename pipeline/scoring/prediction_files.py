"""A checkpoint's predictions of a split as a folder of Parquet files, one per worker, with keys and labels.

Columns: the key columns, one column per scenario level, and for every task `label_TASK` and `prediction_TASK`: a
probability, or a value in the unit of the log's column. A label is null in a row without it. For every binary task that
has `after` there is also `prediction_TASK_given_AFTER`: its probability in case AFTER happens.
"""

from contextlib import ExitStack

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.checkpoint.choice import CheckpointChoice
from pipeline.config.conditional_tasks import conditional_tasks
from pipeline.config.experiment import Experiment
from pipeline.errors import UserError
from pipeline.evaluation.predictions import PredictedBatch, predict
from pipeline.evaluation.split_evaluation import split_reader
from pipeline.log_records import log_fields
from pipeline.progress_bar import ProgressBar
from pipeline.scoring.restored_model import restored_model
from pipeline.table.manifest import read_manifest
from pipeline.workers.worker import Worker

DONE = "_predictions.json"  # written last. Readers of a Parquet folder skip names that begin with "_"


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
    manifest = read_manifest(experiment.table_folder)
    model, saved = restored_model(experiment, manifest, checkpoint, worker)
    reader = split_reader(experiment, experiment.table_folder, manifest, split, worker, experiment.logs.keys)
    rows, not_finite, writer = 0, 0, None
    with ExitStack() as open_files:
        bar = ProgressBar(f"predictions of {split}", manifest.rows(split), is_shown=worker.is_first)
        progress = open_files.enter_context(bar)
        for batch in predict(model.module, reader, worker.device, conditional_tasks(experiment.tasks)):
            table = prediction_table(batch, experiment)
            if writer is None:  # a worker without rows writes no file
                file = storage.join(output, f"part-{worker.rank:05d}.parquet")
                stream = open_files.enter_context(storage.open_output(file))
                writer = open_files.enter_context(pq.ParquetWriter(stream, table.schema))
            writer.write_table(table)
            rows += table.num_rows
            not_finite += int(np.count_nonzero(~np.isfinite(batch.predictions.predictions)))
            progress.add(experiment.evaluation.batch_size)
    counts = worker.gather((rows, not_finite))
    total = worker.on_first(lambda: finish(counts or [], {"split": split, "checkpoint": saved.uri}, output))
    return total if worker.is_first else None


def finish(counts: list[tuple[int, int]], summary: dict[str, str], output: str) -> int:
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


def prediction_table(batch: PredictedBatch, experiment: Experiment) -> pa.Table:
    """The rows of one batch: keys, scenarios, labels and predictions."""
    columns = dict(zip(batch.keys.column_names, batch.keys.columns, strict=True)) if batch.keys is not None else {}
    for level, scenario in enumerate(experiment.scenarios):
        labels = pa.array(scenario.labels).take(pa.array(batch.predictions.scenarios[:, level]))
        columns[f"scenario_{scenario.name}"] = labels
    for column, task in enumerate(experiment.tasks):
        targets, values = batch.predictions.labels[:, column], batch.predictions.predictions[:, column]
        columns[f"label_{task.name}"] = pa.array(task.to_log_unit(targets), mask=np.isnan(targets))
        columns[f"prediction_{task.name}"] = pa.array(task.to_log_unit(values))
    for column, conditional in enumerate(conditional_tasks(experiment.tasks), start=len(experiment.tasks)):
        columns[f"prediction_{conditional.config.name}"] = pa.array(batch.predictions.predictions[:, column])
    return pa.table(columns)
