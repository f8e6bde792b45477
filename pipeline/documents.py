"""Documents: JSON that Manygate writes and reads again later, perhaps as a newer version of itself.

A document is read through its class as the class is now: a key that is not in the file has its default. Two documents
are compared by what they mean, as values of their class, and never as JSON: a key that was added since, with a default,
makes no difference.

A document has a `version`; a file without one has version 1. A change that a default cannot express raises the version,
and the document gets a way over, a function that turns the JSON of every earlier version into the current form.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from pipeline import storage
from pipeline.errors import UserError

Document = TypeVar("Document")
Json = dict[str, Any]

KNOWN_KEYS_ONLY = ConfigDict(extra="forbid")
"""The `__pydantic_config__` of a document's dataclass: nobody knows what a key means that only a newer version has."""


def read_document(
    uri: str,
    kind: type[Document],
    advice: str,
    version: int = 1,
    way_over: Callable[[Json], Json] | None = None,
) -> Document | None:
    """The document in a file; None where there is no file, or one that was never written to its end.

    Raises:
        UserError: as `parse_document` does.
    """
    data = storage.read_json(uri)
    return None if data is None else parse_document(data, kind, uri, advice, version, way_over)


def parse_document(
    data: Any,
    kind: type[Document],
    source: str,
    advice: str,
    version: int = 1,
    way_over: Callable[[Json], Json] | None = None,
) -> Document:
    """Reads the JSON of a document through its class.

    Args:
        data: the JSON.
        kind: the class, a dataclass or a pydantic model.
        source: where the JSON is from, for errors.
        advice: what a person can do who does not want to use another version of Manygate; ends the error's sentence.
        version: the current one of this document.
        way_over: turns the JSON of earlier versions, `version` included, into the current form.

    Raises:
        UserError: a newer version has written it, or it has a key or a value that the class does not take.
    """
    if isinstance(data, dict):
        found = data.get("version", 1)
        if not isinstance(found, int) or found > version:
            raise UserError(
                f"{source} has version {found}, and this Manygate reads versions up to {version}: a newer Manygate has "
                f"written it. Use that one, or {advice}."
            )
        data = {key: value for key, value in (way_over(data) if way_over else data).items() if key != "version"}
    try:
        document: Document = _adapter(kind).validate_python(data)  # type: ignore[arg-type] # a class is hashable
    except ValidationError as error:
        detail = error.errors()[0]
        path = ".".join(map(str, detail["loc"])) or "the whole of it"
        problem = _PROBLEMS.get(detail["type"], f"is not as expected ({detail['msg']})")
        raise UserError(
            f"{source} cannot be read by this version of Manygate: {path} {problem}. Another version has written it, "
            f"or it was changed since: use that version, or {advice}."
        ) from None
    return document


_UNKNOWN = "is a key that it does not know"
_PROBLEMS = {"extra_forbidden": _UNKNOWN, "unexpected_keyword_argument": _UNKNOWN, "missing": "is missing"}


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
