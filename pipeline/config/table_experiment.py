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
    def folder(self) -> str:
        """The run's folder or URI."""
        return storage.join(self.output, self.name)

    @property
    def table_folder(self) -> str:
        """Folder or URI of the run's feature table."""
        return self.table.path or storage.join(self.folder, run_folder.TABLE_FOLDER)
