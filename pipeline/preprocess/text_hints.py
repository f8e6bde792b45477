"""Lists of ids whose texts are probably not meant as ids: `id:weight`, or a list in brackets."""

import logging
from collections import Counter

from pipeline.config.table_experiment import TableExperiment
from pipeline.features.base import TextCounts
from pipeline.preprocess.units import UnitRows

logger = logging.getLogger(__name__)

_MOST = 0.9
"""Share above which something else is probably meant."""


def count_texts(sections: TableExperiment, rows: UnitRows) -> dict[str, TextCounts]:
    """The counts of each feature that has lists of texts."""
    counts = {feature.name: feature.count_texts(rows) for feature in sections.features}
    return {name: found for name, found in counts.items() if found is not None}


def report_texts(sections: TableExperiment, counts: list[dict[str, TextCounts]]) -> None:
    """Warns once per feature whose ids are probably meant without the weights or brackets that they contain."""
    parts, weighted, texts, in_brackets = (Counter[str]() for _ in range(4))
    for unit in counts:
        for name, found in unit.items():
            parts[name] += found.parts
            weighted[name] += found.weighted
            texts[name] += found.texts
            in_brackets[name] += found.in_brackets
    for i, feature in enumerate(sections.features):
        name = feature.name
        if weighted[name] > _MOST * parts[name]:
            logger.warning(
                "feature %s (features.%d): %s of %s parts of its texts look like `id:weight`, and each whole part is "
                "taken as an id, so one id with two weights is two ids. %s; if the number belongs to the id, all is "
                "well.",
                name,
                i,
                f"{weighted[name]:,}",
                f"{parts[name]:,}",
                feature.weights_advice(f"features.{i}"),
            )
        if in_brackets[name] > _MOST * texts[name]:
            logger.warning(
                "feature %s (features.%d): %s of %s texts are lists in brackets, such as [3, 7], and the separator "
                "alone is left out, so the first and the last id contain a bracket. Write the texts without brackets "
                "and quotes, such as 3,7, or as a column of lists, and rebuild the table with --overwrite.",
                name,
                i,
                f"{in_brackets[name]:,}",
                f"{texts[name]:,}",
            )
