"""The names of the files and folders in a feature table, and the names that its splits may have beside them."""

import re
from typing import Annotated

from pydantic import AfterValidator

from pipeline.run_folder import EXPERIMENT_FILE

MANIFEST = "manifest.json"
SETTINGS = "settings.json"
COLUMNS = "columns.parquet"
"""A Parquet file without rows that has the columns of lane files; written first, together with the settings."""
RECORDS = "partitions"
ENCODERS = "encoders"
QUARANTINE = "quarantine"
WORK = "work"

TAKEN = (MANIFEST, SETTINGS, COLUMNS, RECORDS, ENCODERS, QUARANTINE, WORK, EXPERIMENT_FILE)
"""Names that a split cannot have: it is a folder beside them. A reference of a comparison has its experiment there."""


def check_split(name: str) -> str:
    """Returns the name of a split.

    Raises:
        ValueError: it cannot be the name of a folder in the table.
    """
    if not re.fullmatch(r"\w[\w .+@()-]*", name):
        raise ValueError(
            f"the split {name!r} would be a folder of that name: use letters, digits and `_`, and after the first of "
            "them also spaces and the characters . + @ ( ) -"
        )
    if name.lower() in TAKEN:  # some disks do not distinguish upper and lower case
        raise ValueError(f"the split {name!r} cannot have this name, which is taken in the feature table: use another")
    return name


def check_name_part(text: str) -> str:
    """Returns the column or a value of partitions.

    Raises:
        ValueError: it cannot be a part of the name of a folder COLUMN=VALUE.
    """
    if "/" in text or "\0" in text:
        raise ValueError(f"{text!r} is part of the name of a folder COLUMN=VALUE and cannot contain a slash")
    return text


SplitName = Annotated[str, AfterValidator(check_split)]
NamePart = Annotated[str, AfterValidator(check_name_part)]
