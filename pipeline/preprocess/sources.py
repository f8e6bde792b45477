"""Finds the columns that the experiment uses, and checks that the type of each fits its use."""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipeline.config.logs import LogsConfig
from pipeline.config.table_experiment import TableExperiment
from pipeline.errors import UserError
from pipeline.features.arrow_types import has_views, is_float, is_list, plain_type
from pipeline.features.column_use import ANY_TYPE, IDS, NUMBERS, SEPARATED_TEXTS, Use
from pipeline.features.values import KIND_IN_WORDS, Kind, value_kind
from pipeline.preprocess.discover import LogFile
from pipeline.preprocess.path_columns import (
    Values,
    check_once,
    columns_in_paths,
    text_in_path,
    warn_of_unused,
    with_columns,
)
from pipeline.section import nearest
from pipeline.table.settings import DecidingSections

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sources:
    """Where columns come from, and the kind of the ids in them."""

    side: dict[str, int]  # column -> index of its side table; all other columns are in the log
    kinds: dict[str, Kind]  # kind of every column of ids
    undecided: set[str]
    """Columns of ids whose kind in `kinds` is provisional: they have only nulls, only numbers in paths, or texts that
    are split, whose parts are texts unless the ids of a shared encoder are numbers."""
    fractional: set[str]  # columns of ids that are floats in some file: pandas writes integers with nulls as floats
    keys: dict[str, pa.DataType]  # types of the key columns, wide enough for all files
    lacking: dict[str, list[str]]  # log file -> columns that it lacks, which are null there
    in_paths: dict[str, Values]  # log file -> columns that are in its path only

    def in_log(self, column: str) -> bool:
        return column not in self.side


def find_sources(
    sections: TableExperiment, files: list[LogFile], sides: list[pa.Schema], earlier_columns: Collection[str] = ()
) -> Sources:
    """Finds and checks every column that the experiment uses.

    Args:
        files: of the log, those that will be read.
        sides: schemas of the side tables.
        earlier_columns: columns that the existing table was made with. With `missing_columns: null`, the new files may
            lack them.

    Raises:
        UserError: a column is missing, exists in two places, or has a type that does not fit its use.
    """
    files = [file for file in files if any(file.group_rows)] or files  # without rows, no column has a wrong type
    in_paths = columns_in_paths(sections.logs, files)
    log_columns, from_paths = _columns_of_log(sections, files, in_paths, sides, earlier_columns)
    files = [with_columns(file, in_paths[file.path]) for file in files]
    side: dict[str, int] = {}
    kinds: dict[str, Kind] = {}
    undecided: set[str] = set()
    fractional: set[str] = set()
    keys: dict[str, pa.DataType] = {}
    lacking: dict[str, list[str]] = defaultdict(list)
    for use in uses(sections):
        index = _find(sections, use, log_columns, from_paths, sides)
        if index is None:
            schemas = _in_log(sections, use, files, in_paths, lacking)
        else:
            side[use.column] = index
            schemas = [(f"the side table {sections.logs.joins[index].path}", sides[index])]
        kind = _check_types(use, schemas)
        if (kind == "int" and index is None and use.column in from_paths) or use.types is SEPARATED_TEXTS:
            kind = None
        if kind is None and use.types.has_ids:
            undecided.add(use.column)
        if kind is not None:
            kinds[use.column] = kind
            if any(is_float(schema.field(use.column).type) for _, schema in schemas):
                fractional.add(use.column)
        if use.column in sections.logs.keys:
            keys[use.column] = _widest(use, schemas)
    undecided.difference_update(kinds)
    _decide_kinds(sections, sides, kinds, undecided)
    features = {feature.name: feature for feature in sections.features}
    for i, feature in enumerate(sections.features):
        feature.check_id_kinds(f"features.{i}", features, kinds)
    _check_scenario_values(sections, kinds, in_paths)
    _warn_of_lacking(sections.logs, files, lacking)
    taken = {path: values.keys() - side.keys() for path, values in in_paths.items()}
    warn_of_unused(sections.logs, files, {use.column for use in uses(sections)}, taken)
    return Sources(side, kinds, undecided, fractional, keys, dict(lacking), in_paths)


def _columns_of_log(
    sections: TableExperiment,
    files: list[LogFile],
    in_paths: dict[str, Values],
    sides: list[pa.Schema],
    earlier_columns: Collection[str],
) -> tuple[list[str], set[str]]:
    """The columns that files of the log have, or that all of them may lack, and the columns of their paths alone."""
    columns = list(dict.fromkeys(name for file in files for name in file.schema.names))
    from_paths = {name for values in in_paths.values() for name in values}.difference(columns)
    if sections.logs.missing_columns == "null":
        elsewhere = {name for schema in sides for name in schema.names} - {join.key for join in sections.logs.joins}
        columns += sorted({*earlier_columns} - {*columns, *from_paths, *elsewhere})
    return columns, from_paths


def uses(sections: TableExperiment | DecidingSections) -> Iterator[Use]:
    """Every use of a column, by join keys, features, scenarios, labels, weights and keys."""
    for i, join in enumerate(sections.logs.joins):
        yield Use(join.key, f"the join (logs.joins.{i}.key)", IDS)
    for i, feature in enumerate(sections.features):
        yield from feature.uses(f"features.{i}")
    for i, scenario in enumerate(sections.scenarios):
        yield Use(scenario.column, f"scenario {scenario.name!r} (scenarios.{i}.column)", IDS)
    for i, task in enumerate(sections.tasks):
        yield Use(task.column, f"task {task.name!r} (tasks.{i}.column)", NUMBERS)
        if task.reference is not None:
            yield Use(task.reference, f"task {task.name!r} (tasks.{i}.{task.reference_key})", NUMBERS)
        if task.sample_weight is not None:
            yield Use(task.sample_weight, f"the weight of task {task.name!r} (tasks.{i}.sample_weight)", NUMBERS)
    if sections.logs.weight is not None:
        yield Use(sections.logs.weight, "the weight of the rows (logs.weight)", NUMBERS)
    for i, key in enumerate(sections.logs.keys):
        yield Use(key, f"the key (logs.keys.{i})", ANY_TYPE)


def _find(
    sections: TableExperiment, use: Use, log_columns: list[str], in_paths: set[str], sides: list[pa.Schema]
) -> int | None:
    """Index of the side table that has the column; None for the log.

    Join keys always come from the log. Other columns come from paths only if no file and no side table has them.
    """
    joins = sections.logs.joins
    if use.column in {join.key for join in joins}:
        if use.column not in log_columns and use.column not in in_paths:
            raise UserError(
                f"The log has no column {use.column!r}, which {use.user} uses; "
                + nearest(use.column, [*log_columns, *sorted(in_paths)])
            )
        return None
    joined = [i for i, schema in enumerate(sides) if use.column in schema.names]
    places = (["the log"] if use.column in log_columns else []) + [joins[i].path for i in joined]
    if not places and use.column in in_paths:
        return None
    if not places:
        known = dict.fromkeys([*log_columns, *sorted(in_paths), *(name for schema in sides for name in schema.names)])
        where = "Neither the log nor a side table has" if joins else "The log does not have"
        raise UserError(f"{where} a column {use.column!r}, which {use.user} uses; {nearest(use.column, known)}")
    if len(places) > 1:
        raise UserError(
            f"The column {use.column!r}, which {use.user} uses, is in {' and in '.join(places)}: it is not clear "
            "which one is meant. Rename it in one of them."
        )
    return joined[0] if joined else None


def _in_log(
    sections: TableExperiment,
    use: Use,
    files: list[LogFile],
    in_paths: dict[str, Values],
    lacking: dict[str, list[str]],
) -> list[tuple[str, pa.Schema]]:
    """Name and schema of each file that has a column, itself or in its path; adds the others to `lacking`.

    Raises:
        UserError: files lack the column and it may not be null there, or a path has it twice.
    """
    having = [file for file in files if file.has(use.column)]
    without = [file for file in files if not file.has(use.column)]
    if without and sections.logs.missing_columns == "fail":
        others = f" (nor have {len(without) - 1:,} others)" if len(without) > 1 else ""
        raise UserError(
            f"The log file {without[0].path} has no column {use.column!r}{others}, which {use.user} uses, though other "
            "files have it. Rewrite that file with the column, or set logs.missing_columns=null to use null there; "
            + nearest(use.column, without[0].schema.names)
        )
    check_once(use, [file for file in having if use.column in in_paths[file.path]])
    for file in without:
        if use.column not in lacking[file.path]:
            lacking[file.path].append(use.column)
    return [
        (f"the {'path of the ' if use.column in in_paths[file.path] else ''}log file {file.path}", file.schema)
        for file in having
    ]


def _warn_of_lacking(logs: LogsConfig, files: list[LogFile], lacking: dict[str, list[str]]) -> None:
    """Warns once per column that files lack; it may be one that a side table had when the existing table was made."""
    for column in dict.fromkeys(column for columns in lacking.values() for column in columns):
        without = [file for file in files if column in lacking.get(file.path, ())]
        rows = sum(sum(file.group_rows) for file in without)
        if len(without) == len(files) and logs.joins:
            sides = ", ".join(join.path for join in logs.joins)
            reason = (
                f"neither the {len(files):,} files to read, such as {files[0].path}, nor the side tables ({sides}) "
            )
            reason += "have it"
        else:
            reason = f"{len(without):,} of the {len(files):,} files to read lack it, such as {without[0].path}"
        logger.warning(
            "The column %r is null in %s rows, because %s (logs.missing_columns: null).", column, f"{rows:,}", reason
        )


def _check_types(use: Use, schemas: list[tuple[str, pa.Schema]]) -> Kind | None:
    """Checks the column in all its files; returns the kind of its ids, if it has ids and a value."""
    kinds: dict[Kind, str] = {}
    for place, schema in schemas:
        if (columns := len(schema.get_all_field_indices(use.column))) > 1:
            raise UserError(
                f"{place[0].upper()}{place[1:]} has {columns} columns {use.column!r}, which "
                f"{use.user} uses: it is not clear which one is meant. Rewrite that file with only one of them."
            )
        type_ = schema.field(use.column).type
        if pa.types.is_null(plain_type(type_)):  # only nulls: pandas writes this type for an empty column
            continue
        if not use.types.fits(type_):
            raise UserError(
                f"The column {use.column!r}, which {use.user} uses, is {type_} in {place}; expected "
                f"{use.types.expected}. {_other_column(use.column, type_)}"
            )
        kind = use.types.kind(type_)
        if kind is not None:
            kinds.setdefault(kind, f"{type_} in {place}")
    if len(kinds) > 1:
        raise UserError(
            f"The column {use.column!r}, which {use.user} uses, is {' but '.join(kinds.values())}. "
            "Ids must be whole numbers everywhere or texts everywhere: convert one of them."
        )
    return next(iter(kinds), use.types.kind(pa.null()))


def _other_column(column: str, type_: pa.DataType) -> str:
    plain = plain_type(type_)
    struct = plain.value_type if is_list(plain) else plain
    if pa.types.is_struct(struct):
        return f"Use one of its fields, such as '{column}.{struct.field(0).name}', or another column."
    return "Use another column, or convert this one."


def _decide_kinds(
    sections: TableExperiment, sides: list[pa.Schema], kinds: dict[str, Kind], undecided: set[str]
) -> None:
    """Gives every column without a value a kind, and keeps those in `undecided` whose kind nothing says.

    The experiment, a side table, or a column with the same encoder may say it. All other kinds are provisional.
    """
    wanted: dict[str, Kind] = {}
    for scenario in sections.scenarios:
        wanted[scenario.column] = "int" if isinstance(scenario.values[0], int) else "text"
    for join, side in zip(sections.logs.joins, sides, strict=True):
        if (kind := value_kind(side.field(join.key).type)) is not None:
            wanted.setdefault(join.key, kind)
    for column in undecided & wanted.keys():
        kinds[column] = wanted[column]
    _spread_kinds(sections, kinds, undecided)
    undecided.difference_update(kinds)
    split = {use.column for use in uses(sections) if use.types is SEPARATED_TEXTS}
    kinds |= dict.fromkeys(undecided & split, "text")
    _spread_kinds(sections, kinds, undecided)
    kinds |= dict.fromkeys(undecided - kinds.keys(), "int")


def _spread_kinds(sections: TableExperiment, kinds: dict[str, Kind], undecided: set[str]) -> None:
    """Adds the kinds of undecided columns that share an encoder with a column whose kind is known."""
    encoders = {feature.encoder_name for feature in sections.features}
    columns = [{f.column for f in sections.features if f.encoder_name == encoder} for encoder in encoders]
    while True:  # a column may be that of two encoders
        open_ = undecided - kinds.keys()
        found = {c: kinds[k] for group in columns for c in group & open_ for k in group & kinds.keys()}
        if not found:
            break
        kinds.update(found)


def _widest(use: Use, schemas: list[tuple[str, pa.Schema]]) -> pa.DataType:
    """The type that can hold the column of all files; null if they all lack it."""
    if not schemas:
        return pa.null()
    plain = [pa.schema([pa.field(use.column, _decoded(schema.field(use.column).type))]) for _, schema in schemas]
    try:
        return pa.unify_schemas(plain, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        found = ", ".join(dict.fromkeys(str(schema.field(0).type) for schema in plain))
        raise UserError(
            f"The column {use.column!r}, which {use.user} uses, has incompatible types in the files of the log: "
            f"{found}. Convert them to one type."
        ) from None


def _decoded(type_: pa.DataType) -> pa.DataType:
    """The type of a column that is read as plain values. Files of a table keep it from run to run."""
    decoded = type_.value_type if pa.types.is_dictionary(type_) else type_
    return plain_type(decoded) if has_views(decoded) else decoded


def _check_scenario_values(sections: TableExperiment, kinds: dict[str, Kind], in_paths: dict[str, Values]) -> None:
    for i, scenario in enumerate(sections.scenarios):
        kind = kinds[scenario.column]
        wrong = [value for value in scenario.values if isinstance(value, int) != (kind == "int")]
        if wrong and (path := text_in_path(scenario.column, in_paths)):
            raise UserError(
                f"scenarios.{i}.values: {wrong[0]} is a number, but the values of {scenario.column!r} in the paths of "
                f"the log are texts, because of {path}: only 0, 17 or -3 are numbers there, and not a or 07. Rename "
                "this folder, or write all values in quotes as the folders spell them; an existing table is then "
                "rebuilt with --overwrite."
            )
        if wrong:
            raise UserError(
                f"scenarios.{i}.values: the column {scenario.column!r} contains {KIND_IN_WORDS[kind]}, but "
                f"{wrong[0]!r} is of another kind: write the values as they are in the log."
            )
        wide = [value for value in scenario.values if isinstance(value, int) and not -(2**63) <= value < 2**64]
        if wide:
            raise UserError(
                f"scenarios.{i}.values: expected whole numbers of 64 bits, as the column {scenario.column!r} has, but "
                f"found {wide[0]}: write the values as they are in the log."
            )
