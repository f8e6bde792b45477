"""Documents: JSON that Manygate writes and reads again later, perhaps as a newer version of itself.

A document is read through the current form of its class: a key that is missing from the file has its default. Two
documents are compared by meaning, as values of their class, and never as JSON: a key that was added later, with a
default, makes no difference.

A document has a `version`; a file without a version has version 1. A change that a default cannot express raises the
version, and the document gets an `upgrade` function, which converts the JSON of every earlier version to the current
form.
"""

from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from pipeline import storage
from pipeline.errors import UserError

Document = TypeVar("Document")
Json = dict[str, Any]

KNOWN_KEYS_ONLY = ConfigDict(extra="forbid")
"""The `__pydantic_config__` of a document's dataclass: a key that only a newer version has cannot be interpreted."""


def check_relative(path: str) -> str:
    """Returns a path that a document names, in the folder that the document describes.

    Raises:
        ValueError: the path leads out of that folder.
    """
    if not storage.is_relative(path):
        raise ValueError(f"{path!r} is outside of the folder that it belongs to")
    return path


def check_file_name(name: str) -> str:
    """Returns a name that a document gives to a file; raises ValueError if it is a path."""
    if "/" in name:
        raise ValueError(f"{name!r} is not the name of a file")
    return check_relative(name)


RelativePath = Annotated[str, AfterValidator(check_relative)]
FileName = Annotated[str, AfterValidator(check_file_name)]


def read_document(
    uri: str,
    kind: type[Document],
    advice: str,
    version: int = 1,
    upgrade: Callable[[Json], Json] | None = None,
) -> Document | None:
    """The document in a file; None if the file does not exist or was never completely written.

    Raises:
        UserError: as `parse_document` does.
    """
    data = storage.read_json(uri)
    return None if data is None else parse_document(data, kind, uri, advice, version, upgrade)


def parse_document(
    data: Any,
    kind: type[Document],
    source: str,
    advice: str,
    version: int = 1,
    upgrade: Callable[[Json], Json] | None = None,
) -> Document:
    """Converts the JSON of a document to its class.

    Args:
        data: the JSON.
        kind: the class, a dataclass or a pydantic model.
        source: where the JSON comes from, for errors.
        advice: what a user can do instead of using another version of Manygate; the end of the error message.
        version: the current version of this document.
        upgrade: converts the JSON of any version up to `version`, the key `version` included, to the current form.

    Raises:
        UserError: a newer version wrote the document, or it has a key or a value that the class does not accept.
    """
    if isinstance(data, dict):
        found = data.get("version", 1)
        if not isinstance(found, int) or found > version:
            raise UserError(
                f"{source} has version {found}, but this version of Manygate reads versions up to {version}: it was "
                f"written by a newer Manygate. Use that version, or {advice}."
            )
    try:
        if isinstance(data, dict):
            data = {key: value for key, value in (upgrade(data) if upgrade else data).items() if key != "version"}
        document: Document = _adapter(kind).validate_python(data)  # type: ignore[arg-type] # a class is hashable
    except ValidationError as error:
        detail = error.errors()[0]
        path = ".".join(map(str, detail["loc"])) or "the whole document"
        problem = _PROBLEMS.get(detail["type"], f"is not valid ({detail['msg'].removeprefix('Value error, ')})")
        raise _unreadable(source, f"{path} {problem}", advice) from None
    except (AttributeError, KeyError, TypeError):  # of `upgrade`, which takes JSON that nothing has checked
        raise _unreadable(source, "the whole document has another structure", advice) from None
    return document


def _unreadable(source: str, problem: str, advice: str) -> UserError:
    return UserError(
        f"{source} cannot be read by this version of Manygate: {problem}. It was written by another version, or "
        f"changed since then: use that version, or {advice}."
    )


_UNKNOWN = "is an unknown key"
_PROBLEMS = {"extra_forbidden": _UNKNOWN, "unexpected_keyword_argument": _UNKNOWN, "missing": "is missing"}


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
