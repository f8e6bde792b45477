"""docs/metrics.md has a row for every metric and every count of an evaluation."""

import re
from pathlib import Path

from pipeline.metrics.registry import LOG_UNIT, METRICS
from pipeline.report.text import COUNTS

PAGE = Path("docs/metrics.md").read_text()


def test_every_metric_has_its_row() -> None:
    rows = {cells[0].strip("`"): cells for line in PAGE.splitlines() if len(cells := cells_of(line)) == 7}
    assert list(rows)[2:] == list(METRICS), "in the order of the registry, after the heading"
    for name, metric in METRICS.items():
        key, heading, kinds, unit, better, formula, undefined = rows[name]
        assert (heading, kinds, better) == (metric.heading, ", ".join(metric.kinds), metric.better), key
        assert (unit == LOG_UNIT) <= (metric.unit == LOG_UNIT) and formula and undefined, key


def test_every_count_and_mean_has_its_row() -> None:
    keys = {key for columns in COUNTS.values() for key in columns} | {"scenarios_undefined"}
    named = set(re.findall(r"`(\w+)`", PAGE))
    assert keys <= named


def cells_of(line: str) -> list[str]:
    """The cells of a row of a table, in which a vertical bar is escaped."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
