"""The tables in docs/models.md."""

import runpy
from pathlib import Path


def test_the_tables_match_the_code() -> None:
    script = runpy.run_path("docs/kinds.py")
    page = Path("docs/models.md").read_text()
    assert script["with_tables"](page) == page, "run `python docs/kinds.py`"
