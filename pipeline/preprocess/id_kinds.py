"""Kinds of ids in a table that is continued: a column that has only nulls has no kind until a value is seen."""

import logging
from dataclasses import replace

from pipeline.errors import UserError
from pipeline.features.encoders import FIRST_VALUE_ID
from pipeline.features.vocabulary import rare_files
from pipeline.preprocess.preprocess_plan import PreprocessPlan
from pipeline.table.encoder_index import EncoderIndex, write_index
from pipeline.table.partition_record import PartitionRecord

logger = logging.getLogger(__name__)

FIXED = (
    "feature %r has its first values in the new partitions, and table.encoders is `fixed`: all of them share the "
    "unknown id. Rebuild the table with --overwrite to give them ids. With table.encoders=extend, values of later "
    "train partitions get ids."
)


def with_fitted_kinds(
    plan: PreprocessPlan, index: EncoderIndex, records: list[PartitionRecord]
) -> tuple[PreprocessPlan, EncoderIndex]:
    """The plan with the kinds of ids that the encoders were fitted on, where new partitions have only nulls.

    If it is the encoders that have seen only nulls so far, the index with the kinds of the new partitions.

    Raises:
        UserError: new partitions have another kind of ids than the encoders were fitted on.
    """
    kinds, encoders = dict(plan.sources.kinds), dict(index.encoders)
    for name, encoder in index.encoders.items():
        features = [feature for feature in plan.sections.features if feature.encoder_name == name]
        columns = {feature.column for feature in features}
        if encoder.values is None or encoder.values in (found := {kinds[column] for column in columns}):
            continue
        (kind,) = found
        if columns <= plan.sources.undecided:
            kinds |= dict.fromkeys(columns, encoder.values)
        elif _has_seen_nothing(plan.table, name, index, [feature.name for feature in features], records):
            encoders[name] = replace(encoder, values=kind)
            if encoder.kind == "vocabulary" and plan.sections.table.encoders == "fixed":
                logger.warning(FIXED, name)
        else:
            raise UserError(
                f"feature {name!r}: the new partitions have ids of kind {kind}, but the encoder in {plan.table} was "
                f"fitted on {encoder.values}. Convert the new partitions, or rebuild the table with --overwrite."
            )
    plan = replace(plan, sources=replace(plan.sources, kinds=kinds))
    if encoders != index.encoders:
        index = replace(index, encoders=encoders)
        write_index(plan.table, index)
    return plan, index


def _has_seen_nothing(
    table: str, name: str, index: EncoderIndex, features: list[str], records: list[PartitionRecord]
) -> bool:
    """Whether an encoder has met only nulls in all partitions, so that its kind of ids is not known yet."""
    for partition in (record.partition for record in records if record.partition.kept):
        if any(partition.ids.get(feature) != partition.missing.get(feature, 0) for feature in features):
            return False
    encoder = index.encoders[name]
    is_empty = encoder.rows == FIRST_VALUE_ID and not rare_files(table, name, index.generation)
    return is_empty or encoder.kind != "vocabulary"
