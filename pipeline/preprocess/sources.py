"""Which columns the experiment uses, where each comes from, and whether its type fits its use."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipeline.config.base import nearest
from pipeline.config.features import Categorical, Multivalued, Numeric, Sequence
from pipeline.errors import UserError
from pipeline.preprocess.discover import LogFile
from pipeline.preprocess.sections import Sections
from pipeline.preprocess.values import Kind, is_list, is_number, value_kind, without_views


@dataclass(frozen=True)
class Use:
    """One use of a column by the experiment."""

    column: str
    user: str  # who uses it, with its path in the experiment file
    expected: str  # the types that fit, in words
    fits: Callable[[pa.DataType], bool]
    kind: Callable[[pa.DataType], Kind | None] = lambda type_: None  # of the ids in it, where it has ids


@dataclass(frozen=True)
class Sources:
    """Where columns come from, and what the ids in them are made of."""

    side: dict[str, int]  # column -> index of the side table; a column that is not here is in the log
    kinds: dict[str, Kind]  # of every column of ids
    fractional: set[str]  # columns of ids that are floats somewhere, which pandas makes of integers with nulls
    keys: dict[str, pa.DataType]  # types of the key columns, as wide as all files need

    def in_log(self, column: str) -> bool:
        return column not in self.side


def find_sources(sections: Sections, files: list[LogFile], sides: list[pa.Schema]) -> Sources:
    """Finds and checks every column that the experiment uses.

    Raises:
        UserError: a column is missing, stands in two places, or has a type that does not fit its use.
    """
    log_columns = list(dict.fromkeys(name for file in files for name in file.schema.names))
    side: dict[str, int] = {}
    kinds: dict[str, Kind] = {}
    fractional: set[str] = set()
    keys: dict[str, pa.DataType] = {}
    for use in uses(sections):
        index = _find(sections, use, log_columns, sides)
        if index is None:
            schemas = [(f"the log file {file.path}", file.schema) for file in files]
        else:
            side[use.column] = index
            schemas = [(f"the side table {sections.logs.joins[index].path}", sides[index])]
        kind = _check_types(use, schemas)
        if kind is not None:
            kinds[use.column] = kind
            if any(pa.types.is_floating(schema.field(use.column).type) for _, schema in schemas):
                fractional.add(use.column)
        if use.column in sections.logs.keys:
            keys[use.column] = _widest(use, schemas)
    _check_shared_tables(sections, kinds)
    _check_scenario_values(sections, kinds)
    return Sources(side, kinds, fractional, keys)


def uses(sections: Sections) -> Iterator[Use]:
    """Every use of a column: join keys, features, scenarios, labels, keys."""
    for i, join in enumerate(sections.logs.joins):
        yield Use(join.key, f"the join (logs.joins.{i}.key)", *_IDS)
    for i, feature in enumerate(sections.features):
        user = f"feature {feature.name!r} (features.{i}.column)"
        if isinstance(feature, Numeric):
            yield Use(feature.column, user, "an integer, a float or a boolean", is_number)
        elif isinstance(feature, Categorical):
            yield Use(feature.column, user, *_IDS)
        elif isinstance(feature, Multivalued) and feature.separator is not None:
            yield Use(feature.column, user, *_TEXTS)
        elif isinstance(feature, Multivalued):
            yield Use(feature.column, user, _LISTS[0] + ", or text with a `separator`", *_LISTS[1:])
        else:
            yield Use(feature.column, user, *_LISTS)
    for i, scenario in enumerate(sections.scenarios):
        yield Use(scenario.column, f"scenario {scenario.name!r} (scenarios.{i}.column)", *_IDS)
    for i, task in enumerate(sections.tasks):
        user = f"task {task.name!r} (tasks.{i}.column)"
        yield Use(task.column, user, "an integer, a float or a boolean", is_number)
    for i, key in enumerate(sections.logs.keys):
        yield Use(key, f"the key (logs.keys.{i})", "any type", lambda type_: True)


def _has_ids(type_: pa.DataType) -> bool:
    return value_kind(type_) is not None


def _is_plain_text(type_: pa.DataType) -> bool:
    return value_kind(type_) == "text"


def _is_id_list(type_: pa.DataType) -> bool:
    if not is_list(type_):
        return False
    item = type_.value_type
    return pa.types.is_null(item) or (_has_ids(item) and not pa.types.is_floating(item))


def _item_kind(type_: pa.DataType) -> Kind | None:
    return value_kind(type_.value_type) if is_list(type_) else None


def _text_kind(type_: pa.DataType) -> Kind:
    return "text"


_IDS = ("whole numbers, texts or booleans", _has_ids, value_kind)
_TEXTS = ("text to be split at the separator", _is_plain_text, _text_kind)
_LISTS = ("lists of whole numbers or texts", _is_id_list, _item_kind)


def _find(sections: Sections, use: Use, log_columns: list[str], sides: list[pa.Schema]) -> int | None:
    """Index of the side table that has the column; None for the log, which every join key comes from."""
    joins = sections.logs.joins
    if use.column in {join.key for join in joins}:
        if use.column not in log_columns:
            raise UserError(
                f"The log has no column {use.column!r}, which {use.user} names; {nearest(use.column, log_columns)}"
            )
        return None
    joined = [i for i, schema in enumerate(sides) if use.column in schema.names]
    places = (["the log"] if use.column in log_columns else []) + [joins[i].path for i in joined]
    if not places:
        known = dict.fromkeys([*log_columns, *(name for schema in sides for name in schema.names)])
        where = "Neither the log nor a side table has" if joins else "The log does not have"
        raise UserError(f"{where} a column {use.column!r}, which {use.user} names; {nearest(use.column, known)}")
    if len(places) > 1:
        raise UserError(
            f"The column {use.column!r}, which {use.user} names, stands in {' and in '.join(places)}: it is not clear "
            "which is meant. Rename it in one of them."
        )
    return joined[0] if joined else None


def _check_types(use: Use, schemas: list[tuple[str, pa.Schema]]) -> Kind | None:
    """Checks the column in every place; gives the kind of its ids, where it has any."""
    kinds: dict[Kind, str] = {}
    for place, schema in schemas:
        if use.column not in schema.names:
            raise UserError(
                f"{place[0].upper()}{place[1:]} has no column {use.column!r}, which {use.user} names, though other "
                f"files have it; {nearest(use.column, schema.names)}. Write that file again with the column."
            )
        if schema.names.count(use.column) > 1:
            raise UserError(
                f"{place[0].upper()}{place[1:]} has {schema.names.count(use.column)} columns {use.column!r}, which "
                f"{use.user} names: it is not clear which is meant. Write that file again with one of them."
            )
        type_ = schema.field(use.column).type
        if pa.types.is_null(type_):  # nothing but nulls: what pandas writes for an empty column
            continue
        if not use.fits(type_):
            raise UserError(
                f"The column {use.column!r}, which {use.user} names, is {type_} in {place}; expected {use.expected}. "
                "Name another column, or convert this one."
            )
        kind = use.kind(type_)
        if kind is not None:
            kinds.setdefault(kind, f"{type_} in {place}")
    if len(kinds) > 1:
        raise UserError(
            f"The column {use.column!r}, which {use.user} names, is {' but '.join(kinds.values())}. "
            "Ids must be whole numbers everywhere or texts everywhere: convert one of them."
        )
    # A column of nothing but nulls has no values that could be of either kind.
    return next(iter(kinds), use.kind(pa.int64()) or use.kind(pa.list_(pa.int64())))


def _widest(use: Use, schemas: list[tuple[str, pa.Schema]]) -> pa.DataType:
    """The type that holds the column of all files."""
    plain = [pa.schema([pa.field(use.column, _decoded(schema.field(use.column).type))]) for _, schema in schemas]
    try:
        return pa.unify_schemas(plain, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        found = ", ".join(dict.fromkeys(str(schema.field(0).type) for schema in plain))
        raise UserError(
            f"The column {use.column!r}, which {use.user} names, has types that do not go together in the files of "
            f"the log: {found}. Convert them to one type."
        ) from None


def _decoded(type_: pa.DataType) -> pa.DataType:
    """The type that a column has once it is read as plain values."""
    return without_views(type_.value_type if pa.types.is_dictionary(type_) else type_)


def _check_shared_tables(sections: Sections, kinds: dict[str, Kind]) -> None:
    owners = {feature.name: feature for feature in sections.features}
    for i, feature in enumerate(sections.features):
        if isinstance(feature, Numeric) or feature.shares is None:
            continue
        owner = owners[feature.shares]
        if kinds[feature.column] != kinds[owner.column]:
            raise UserError(
                f"features.{i}.shares: {feature.name!r} has {_WORDS[kinds[feature.column]]} in the column "
                f"{feature.column!r}, but {owner.name!r}, whose table it shares, has {_WORDS[kinds[owner.column]]} in "
                f"{owner.column!r}. Convert one, or give {feature.name!r} `ids` and `dim` of its own."
            )


_WORDS: dict[Kind, str] = {"int": "whole numbers", "text": "texts"}


def _check_scenario_values(sections: Sections, kinds: dict[str, Kind]) -> None:
    for i, scenario in enumerate(sections.scenarios):
        kind = kinds[scenario.column]
        wrong = [value for value in scenario.values if isinstance(value, int) != (kind == "int")]
        if wrong:
            raise UserError(
                f"scenarios.{i}.values: the column {scenario.column!r} holds {_WORDS[kind]}, but {wrong[0]!r} is not "
                "one: write the values as they are in the log."
            )
        wide = [value for value in scenario.values if isinstance(value, int) and not -(2**63) <= value < 2**64]
        if wide:
            raise UserError(
                f"scenarios.{i}.values: expected whole numbers of 64 bits, as the column {scenario.column!r} has, but "
                f"found {wide[0]}: write the values as they are in the log."
            )


def table_kind(sections: Sections, sources: Sources, table: str) -> Kind:
    """What the ids of an embedding table are made of."""
    owner = sections.embedded[table]
    return sources.kinds[owner.column]


def features_of_table(sections: Sections, table: str) -> list[Categorical | Multivalued | Sequence]:
    """The features whose ids are rows of an embedding table."""
    return [feature for feature in sections.embedded.values() if feature.table == table]
