"""The plan of a run: the experiment bound to the columns of its logs, checked before anything is written."""

from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa

from pipeline import storage
from pipeline.config.table_experiment import TableExperiment
from pipeline.errors import UserError
from pipeline.preprocess.discover import LogFile
from pipeline.preprocess.side_tables import SideTable, load_side_table, read_side_schema
from pipeline.preprocess.sources import Sources, find_sources
from pipeline.table.manifest import ID_WEIGHTS, KEY, LABEL, REFERENCE, SCENARIO, WEIGHT, TableColumn


@dataclass(frozen=True)
class PreprocessPlan:
    """Everything that a unit of work needs; sent to the workers once."""

    sections: TableExperiment
    log: str  # folder or URI, independent of the working directory
    table: str
    sources: Sources
    sides: list[SideTable]
    schema: pa.Schema  # of lane files
    task_memory: int | None  # bytes that each task reserves


def make_preprocess_plan(
    sections: TableExperiment,
    table: str,
    files: list[LogFile],
    task_memory: int | None = None,
    earlier_columns: Collection[str] = (),
) -> PreprocessPlan:
    """Binds the experiment to its logs and loads the side tables.

    Args:
        files: the files that will be read.
        earlier_columns: columns that the existing table was made with, see `find_sources`.

    Raises:
        UserError: a column or side table is missing or unusable, see `find_sources` and `load_side_table`.
    """
    joins = sections.logs.joins
    schemas = [read_side_schema(join, f"logs.joins.{i}") for i, join in enumerate(joins)]
    sources = find_sources(sections, files, schemas, earlier_columns)
    sides = []
    for i, join in enumerate(joins):
        used = [column for column, index in sources.side.items() if index == i]
        sides.append(load_side_table(join, f"logs.joins.{i}", used))
    check_join_kinds(sections, sources, sides)
    log = storage.absolute(sections.logs.path)
    return PreprocessPlan(sections, log, table, sources, sides, lane_schema(sections, sources.keys), task_memory)


def check_join_kinds(sections: TableExperiment, sources: Sources, sides: list[SideTable]) -> None:
    for i, (join, side) in enumerate(zip(sections.logs.joins, sides, strict=True)):
        if sources.kinds[join.key] != side.key_kind:
            raise UserError(
                f"logs.joins.{i}.key: {join.key!r} is {sources.kinds[join.key]} in the log but {side.key_kind} in "
                f"{join.path}: no row would match. Convert one of them."
            )


def lane_schema(sections: TableExperiment, keys: dict[str, pa.DataType]) -> pa.Schema:
    """Columns of lane files: features, labels, weights, references, scenarios, keys.

    A feature whose ids have weights is followed by their column. Only the keys are nullable: null in padding rows.
    """
    columns = {}
    for feature in sections.features:
        columns[feature.name] = feature.column_type
        if feature.has_weights:
            columns[ID_WEIGHTS + feature.name] = pa.list_(pa.field("element", pa.float32()))
    columns |= {LABEL + task.name: pa.float32() for task in sections.tasks}
    if sections.has_weights:
        columns |= {WEIGHT + task.name: pa.float32() for task in sections.tasks}
    columns |= {REFERENCE + task.name: pa.float32() for task in sections.tasks if task.reference is not None}
    columns |= {SCENARIO + scenario.name: pa.int32() for scenario in sections.scenarios}
    columns |= {KEY + key: keys[key] for key in sections.logs.keys}
    return pa.schema([pa.field(name, type_, nullable=name.startswith(KEY)) for name, type_ in columns.items()])


def columns_in_words(schema: pa.Schema) -> list[TableColumn]:
    """The columns of lane files, in the form used by the manifest."""
    return [TableColumn(field.name, type_in_words(field.type)) for field in schema]


def type_in_words(type_: pa.DataType) -> str:
    """Name of an Arrow type without the names of inner fields; floats with their width: `list<int32>`, `float32`."""
    if pa.types.is_list(type_):
        return f"list<{type_in_words(type_.value_type)}>"
    return {"halffloat": "float16", "float": "float32", "double": "float64"}.get(str(type_), str(type_))
