"""What the rows of each split contain, from the counts in the manifest."""

from dataclasses import dataclass

from pipeline.table.content import Content, merged
from pipeline.table.manifest import Manifest


@dataclass(frozen=True)
class SplitContent:
    """A split, without its partitions that have no counts."""

    name: str
    rows: int
    filtered: int
    is_whole: bool  # whether every partition with rows has counts
    content: Content


def split_contents(manifest: Manifest) -> list[SplitContent]:
    """The content of each split that has counts."""
    found = []
    for split in dict.fromkeys(partition.split for partition in manifest.partitions):
        partitions = manifest.split(split)
        counted = [partition for partition in partitions if partition.content is not None]
        parts = [partition.content for partition in counted if partition.content is not None]
        if parts:
            rows, filtered = sum(p.kept for p in counted), sum(p.filtered for p in counted)
            is_whole = rows == sum(p.kept for p in partitions)
            found.append(SplitContent(split, rows, filtered, is_whole, merged(parts)))
    return found
