"""The part of an experiment that determines its feature table: all that preprocessing knows of the experiment."""

from pydantic import Field

from pipeline import run_folder, storage
from pipeline.config.logs import LogsConfig, ScenarioConfig, TaskConfig
from pipeline.config.training import TableConfig
from pipeline.features.kinds import AnyFeature
from pipeline.section import Section

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


class TableExperiment(Section):
    """Where a feature table is, and the sections that determine its contents."""

    name: str = Field(pattern=RUN_NAME)
    output: str = "runs"
    """Folder or URI under which the run keeps its own folder, `output/name`."""
    logs: LogsConfig
    table: TableConfig = TableConfig()
    features: list[AnyFeature] = Field(min_length=1)
    scenarios: list[ScenarioConfig] = Field(min_length=1)
    tasks: list[TaskConfig] = Field(min_length=1)

    @property
    def has_weights(self) -> bool:
        """Whether the feature table has a weight of each row for each task."""
        own = any(task.sample_weight is not None for task in self.tasks)
        return own or self.logs.weight is not None or self.logs.negatives is not None

    @property
    def has_task_weights(self) -> bool:
        """Whether a row may count more, less or not at all for a task; otherwise every row counts 1 for every task."""
        return self.has_weights or any(task.may_lack_labels for task in self.tasks)

    @property
    def folder(self) -> str:
        """The run's folder or URI."""
        return storage.join(self.output, self.name)

    @property
    def table_folder(self) -> str:
        """Folder or URI of the run's feature table."""
        return self.table.path or storage.join(self.folder, run_folder.TABLE_FOLDER)
