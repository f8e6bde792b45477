"""Texts whose parts look like `id:weight`, although their feature takes each part as an id."""

import logging
from collections import defaultdict

from pipeline.config.table_experiment import TableExperiment
from pipeline.preprocess.units import UnitRows

logger = logging.getLogger(__name__)

_MOST = 0.9
"""Share of parts above which a weight is probably meant."""


def count_weighted_parts(sections: TableExperiment, rows: UnitRows) -> dict[str, tuple[int, int]]:
    """For each feature that takes parts of texts as ids: the parts, and those that look like `id:weight`."""
    counts = {feature.name: feature.weighted_parts(rows) for feature in sections.features}
    return {name: found for name, found in counts.items() if found[0]}


def report_weighted_parts(sections: TableExperiment, counts: list[dict[str, tuple[int, int]]]) -> None:
    """Warns once per feature whose ids are probably meant without the weights that they contain."""
    parts, weighted = defaultdict[str, int](int), defaultdict[str, int](int)
    for unit in counts:
        for name, (some, like) in unit.items():
            parts[name] += some
            weighted[name] += like
    for i, feature in enumerate(sections.features):
        name = feature.name
        if weighted[name] > _MOST * parts[name]:
            logger.warning(
                "feature %s (features.%d): %s of %s parts of its texts look like `id:weight`, and each whole part is "
                "taken as an id, so one id with two weights is two ids. Set features.%d.weights to ':' and rebuild "
                "the table with --overwrite; if the number belongs to the id, all is well.",
                name,
                i,
                f"{weighted[name]:,}",
                f"{parts[name]:,}",
                i,
            )
