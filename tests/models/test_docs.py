"""The tables in docs/features.md and docs/models.md."""

import runpy
from pathlib import Path

import pytest


@pytest.mark.parametrize("file", ["features.md", "models.md"])
def test_the_tables_match_the_code(file: str) -> None:
    script = runpy.run_path("docs/kinds.py")
    assert script["with_tables"](file) == Path("docs", file).read_text(), "run `python docs/kinds.py`"
