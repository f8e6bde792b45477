"""Lists that are written as text, such as `3,7,1`, and split at a separator."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features.kinds import FEATURE_KINDS
from pipeline.features.multivalued import MultivaluedFeature
from pipeline.features.sequence import SequenceFeature
from pipeline.table.settings import TableSettings
from tests.preprocess.logs import experiment, read_split
from tests.preprocess.test_labels_and_weights import make, write

USER: dict[str, Any] = {"name": "user", "column": "user", "kind": "categorical", "ids": {"vocabulary": {}}, "dim": 2}
SEEN: dict[str, Any] = {"name": "seen", "column": "seen", "kind": "sequence", "shares": "user", "max_length": 3}


pytestmark = pytest.mark.usefixtures("without_ray")


def test_a_behaviour_as_text_gives_the_table_of_the_same_list(tmp_path: Path) -> None:
    lists = [["3", "7", "1"], [], ["7"], ["1", "3", "7", "9", "3"], ["9"], []]
    users = ["1", "3", "7", "9", "1", "3"]
    labels = {"click": [1, 0, 1, 0, 1, 0], "user": users}
    tables = {}
    for name, column, keys in (
        ("lists", pa.array(lists), {}),
        ("texts", pa.array([*(",".join(v) for v in lists[:-1]), None]), {"separator": ","}),
        ("blanks", pa.array([" , ".join(v) + "," for v in lists]), {"separator": ","}),
        ("bytes", pa.array([",".join(v).encode() for v in lists]), {"separator": ","}),
        ("signs", pa.array([".*".join(v) for v in lists]), {"separator": ".*"}),
    ):
        for day in (1, 2):
            write(tmp_path / name, day, {**labels, "seen": column})
        manifest = make(tmp_path / name, features=[USER, {**SEEN, **keys}])
        tables[name] = read_split(tmp_path / name / "table", manifest, "test")
        assert sum(partition.quarantined for partition in manifest.partitions) == 0
    assert tables["lists"]["seen"].map(len).tolist() == [3, 0, 1, 3, 1, 0]
    for name, table in tables.items():
        assert table.astype(str).equals(tables["lists"].astype(str)), name


PARTS = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters=",|"), min_size=1, max_size=3)
BLANKS = st.sampled_from(["", " ", "\t", " \u00a0"])


@given(
    rows=st.lists(st.lists(st.tuples(BLANKS, PARTS | st.just(""), BLANKS), max_size=6), min_size=1, max_size=5),
    separator=st.sampled_from([",", "|", "||", ", "]),
    length=st.integers(1, 4),
)
def test_any_spelling_gives_the_parts_without_blanks(
    rows: list[list[tuple[str, str, str]]], separator: str, length: int
) -> None:
    texts = [separator.join("".join(part) for part in row) for row in rows]
    expected = [[part for text in row_text.split(separator) if (part := text.strip())] for row_text in texts]
    keys = {"name": "x", "column": "x", "ids": {"vocabulary": {}}, "dim": 2, "separator": separator}
    pooled = MultivaluedFeature.model_validate({**keys, "kind": "multivalued"}).read(pa.array(texts), "text")
    behaviour = SequenceFeature.model_validate({**keys, "kind": "sequence", "max_length": length})
    last = behaviour.read(pa.array(texts), "text")
    assert pooled.lengths.tolist() == [len(row) for row in expected]
    assert pooled.items.to_pylist() == [part for row in expected for part in row]
    assert last.lengths.tolist() == [min(len(row), length) for row in expected]
    assert last.items.to_pylist() == [part for row in expected for part in row[-length:]]


def test_settings_contain_a_later_key_of_a_feature_only_if_it_is_used(tmp_path: Path) -> None:
    def features(**keys: Any) -> list[dict[str, Any]]:
        made = experiment(tmp_path, features=[USER, {**SEEN, **keys}]).table_experiment
        return list(TableSettings.of(made).document["features"])

    assert "separator" not in features()[1] and features(separator=",")[1]["separator"] == ","
    for kind in FEATURE_KINDS.values():
        assert not any(kind.model_fields[key].is_required() for key in kind.later_keys)


NUMBERS = [["3", "7", "1"], [], ["007"], ["+1", "3", "-7", "9"], ["18446744073709551615"], ["0"]]
FAULTS = ["x", "3.0", "1_0", "0x1F", "١", "18446744073709551616", "-9223372036854775809", "1 2", "--1", "9" * 200]


def test_parts_are_numbers_where_the_shared_ids_are(tmp_path: Path) -> None:
    """A part that is no whole number is quarantined with its row, and the other rows are those of a list column."""
    users = pa.array([3, 7, 1, 9, 2**64 - 1, 0], pa.uint64())
    labels = {"click": [1, 0, 1, 0, 1, 0], "user": users}
    tables = {}
    for name, column, keys in (
        ("lists", pa.array([[int(v) % 2**64 for v in row] for row in NUMBERS], pa.list_(pa.uint64())), {}),
        ("texts", pa.array([" ,".join(row) for row in NUMBERS]), {"separator": ","}),
    ):
        for day in (1, 2):
            write(tmp_path / name, day, {**labels, "seen": column})
        made = make(tmp_path / name, features=[USER, {**SEEN, **keys}])
        assert sum(partition.quarantined for partition in made.partitions) == 0
        tables[name] = read_split(tmp_path / name / "table", made, "test")
    assert tables["texts"].astype(str).equals(tables["lists"].astype(str))
    rows = [f"3,{fault},7" for fault in FAULTS] + ["3"]
    for day in (1, 2):
        columns = {"click": [1] * len(rows), "user": pa.array([3] * len(rows), pa.uint64()), "seen": pa.array(rows)}
        write(tmp_path / "faults", day, columns)
    manifest = make(tmp_path / "faults", features=[USER, {**SEEN, "separator": ","}])
    reasons = {"feature seen: a part of the text is not a whole number": len(FAULTS)}
    assert [(partition.kept, partition.reasons) for partition in manifest.partitions] == [(1, reasons)] * 2


def test_a_day_without_ids_keeps_the_kind_of_the_parts(tmp_path: Path) -> None:
    """Both columns are texts or null on that day: the kind is that of the existing table."""
    for users in (pa.array([3, 7]), pa.array(["3", "7"])):
        folder = tmp_path / str(users.type)
        features = [USER, {**SEEN, "separator": ","}]
        for day in (1, 2):
            write(folder, day, {"click": [1, 0], "user": users, "seen": ["3,7", "7"]})
        make(folder, features=features)
        write(folder, 3, {"click": [1, 0], "user": pa.nulls(2, pa.int64()).cast(users.type), "seen": ["3,7", "7"]})
        manifest = make(folder, features=features, logs={"splits": {"train": [1, 1], "test": [2, 3]}})
        seen = [list(row) for row in read_split(folder / "table", manifest, "test")["seen"]]
        assert seen[:2] == seen[2:] and 1 not in seen[0]
