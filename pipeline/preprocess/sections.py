"""The sections of the experiment that preprocessing reads.

Workers get these instead of the whole experiment, whose model section would make every worker import PyTorch.
"""

from dataclasses import dataclass

from pipeline.config.features import Categorical, Feature, Multivalued, Sequence, embedded_features
from pipeline.config.logs import LogsConfig, ScenarioConfig, TaskConfig
from pipeline.config.training import TableConfig


@dataclass(frozen=True)
class Sections:
    """Parts of a checked experiment: references between them hold."""

    logs: LogsConfig
    features: list[Feature]
    scenarios: list[ScenarioConfig]
    tasks: list[TaskConfig]
    table: TableConfig

    @property
    def embedded(self) -> dict[str, Categorical | Multivalued | Sequence]:
        """Features whose ids come from a column of ids, by name."""
        return embedded_features(self.features)
