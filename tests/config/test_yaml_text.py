"""The YAML of experiments: values of the log are texts as they were typed."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.load import dump_experiment, load_experiment, parse_experiment
from pipeline.config.yaml_text import ExperimentDumper, ExperimentLoader, with_typed_texts

EXAMPLE = Path("examples/kuairand/experiment.yaml")
SPELLINGS = [
    "2026-01-09", "2026-1-9", "2026-01-09 10:00", "2026-01-09 10:00:00", "2026-01-09T10:00:00Z", "10:30", "00:00",
    "10:30:05", "10:30:05.5", "190:20:30", "007", "010", "020260109", "0x1F", "0b11", "1_000", "1e3", "1_0.5", "08",
]  # fmt: skip


@pytest.mark.parametrize("typed", SPELLINGS)
def test_values_of_the_log_are_kept_as_typed(tmp_path: Path, typed: str) -> None:
    override = [f"logs.splits={{train: [{typed}, {typed}]}}", f"scenarios.tab.values=[{typed}, 7]", "evaluation={}"]
    experiment = load_experiment(EXAMPLE, [*override, "training.early_stopping=null"])
    assert experiment.logs.splits["train"] == (typed, typed)
    assert experiment.scenarios[0].values == [typed, 7]
    (tmp_path / "experiment.yaml").write_text(dump_experiment(experiment))
    assert load_experiment(tmp_path / "experiment.yaml") == experiment  # as a user reads the file of a run
    assert parse_experiment(yaml.safe_load(dump_experiment(experiment)), "again") == experiment


def test_the_file_and_an_override_read_alike(tmp_path: Path) -> None:
    text = EXAMPLE.read_text()
    line = "  splits: {train: [2026-1-1, 2026-01-02], valid: [20260103, 20260103], test: [2026-1-4, 2026-1-9]}\n"
    start = text.index("  splits:")
    (tmp_path / "it.yaml").write_text(text[:start] + line + text[text.index("\n", start) + 1 :])
    splits = load_experiment(tmp_path / "it.yaml").logs.splits
    assert splits == {
        "train": ("2026-1-1", "2026-01-02"),
        "valid": (20260103, 20260103),
        "test": ("2026-1-4", "2026-1-9"),
    }
    assert load_experiment(EXAMPLE, [line.strip().replace("splits: ", "logs.splits=")]).logs.splits == splits


def test_numbers_elsewhere_are_read_as_before() -> None:
    experiment = load_experiment(EXAMPLE, ["training.seed=0x10", "training.global_batch_size=1_024"])
    assert (experiment.training.seed, experiment.training.global_batch_size) == (16, 1024)


VALUES = st.one_of(
    st.sampled_from(SPELLINGS), st.text(max_size=8), st.from_regex(r"[-+0-9.:_eExTZ ]{0,12}", fullmatch=True)
)
PARTS: Any = st.recursive(
    st.one_of(VALUES, st.integers(), st.booleans(), st.none()), lambda part: st.lists(part, max_size=3)
)


@given(PARTS)
@settings(max_examples=500, deadline=None)
def test_what_is_dumped_is_read_again(part: Any) -> None:
    text = yaml.dump({"values": part}, Dumper=ExperimentDumper, sort_keys=False)
    assert yaml.safe_load(text) == {"values": part}
    assert with_typed_texts(yaml.load(text, Loader=ExperimentLoader)) == {"values": part}  # noqa: S506
