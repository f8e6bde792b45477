"""Absolute paths of a run and its table, for processes in other folders."""

from pathlib import Path

import pytest

from pipeline.config.paths import with_absolute_paths
from tests import synthetic


def test_a_relative_table_is_the_same_for_workers_in_other_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = synthetic.experiment(Path("runs"), table={"path": "shared/table"})
    assert with_absolute_paths(experiment).table_folder == f"{tmp_path}/shared/table"
    remote = synthetic.experiment(Path("runs"), table={"path": "s3://bucket/table"})
    assert with_absolute_paths(remote).table_folder == "s3://bucket/table"
    assert with_absolute_paths(synthetic.experiment(Path("runs"))).table_folder == f"{tmp_path}/runs/synthetic/table"
