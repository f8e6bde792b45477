"""The document `compare.json`, written by `manygate compare` and shown by the report."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel

from pipeline.documents import read_document
from pipeline.metrics.registry import METRICS


def _known_metric(name: str) -> str:
    if name not in METRICS:
        raise ValueError(f"there is no metric {name!r}")
    return name


class ComparedCell(BaseModel):
    """A variant's or the reference's values of one task over some rows, see `compare`."""

    mean: float | None = None
    std: float | None = None
    values: list[float | None] = []
    difference: float | None = None
    beyond_noise: bool | None = None
    transfer: float | None = None
    transfer_beyond_noise: bool | None = None


class ComparedVariant(BaseModel):
    """One variant: its finished seeds, and its cells by task and by label."""

    seeds: list[int] = []
    tasks: dict[str, dict[str, ComparedCell]]


class ComparisonDocument(BaseModel):
    """The keys that the report reads; other keys are ignored."""

    split: str
    metric_of_task: dict[str, Annotated[str, AfterValidator(_known_metric)]]
    baseline: str
    seeds: list[int]
    variants: dict[str, ComparedVariant]
    reference: dict[str, dict[str, ComparedCell]] | None = None


def read_comparison(uri: str) -> Mapping[str, Any] | None:
    """The JSON of a comparison, checked; None if there is no file.

    Raises:
        UserError: a newer version has written it, or it is not a comparison.
    """
    document = read_document(uri, ComparisonDocument, "compare again with `manygate compare`")
    return None if document is None else document.model_dump(exclude_unset=True)
