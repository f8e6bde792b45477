"""Reads and checks an experiment file. Every mistake is reported with its path in the file."""

import json
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline import storage
from pipeline.config.experiment import Experiment
from pipeline.config.yaml_text import ExperimentDumper, ExperimentLoader, with_typed_texts
from pipeline.config.yaml_values import describe_found, describe_text
from pipeline.errors import UserError
from pipeline.section import kind_of, nearest


def load_experiment(path: str | Path, overrides: list[str] | None = None) -> Experiment:
    """Reads, overrides and checks an experiment.

    Args:
        path: the YAML file.
        overrides: dotted assignments such as ``training.epochs=3`` or ``tasks.0.weight=2``; the value is YAML.

    Raises:
        UserError: the file cannot be read, or a key, a type or a reference is wrong.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the experiment file {path}: {error}.") from error
    try:
        data = yaml.load(text, Loader=ExperimentLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected an experiment (keys and values), found {type(data).__name__}.")
    for override in overrides or []:
        apply_override(data, override)
    return parse_experiment(data, str(path))


def parse_experiment(data: dict[str, Any], source: str) -> Experiment:
    """Checks the content of an experiment; `source` is named in errors."""
    try:
        text = json.dumps(with_typed_texts(data), default=str)
    except (TypeError, ValueError) as error:  # a key that is a list; a part that contains itself
        raise UserError(f"{source} is not a valid experiment: {error}.") from None
    try:
        # JSON mode is strict about types (no "16" for 16) and still takes a list for a tuple.
        return Experiment.model_validate_json(text, strict=True)
    except ValidationError as error:
        lines = [describe_error(detail) for detail in without_other_kinds(error.errors())]
        raise UserError(f"{source} is not a valid experiment:\n" + "\n".join(f"  {line}" for line in lines)) from None


def read_experiment(uri: str) -> Experiment:
    """Reads the resolved experiment that a run keeps in its folder.

    Raises:
        UserError: this version cannot read it.
    """
    try:
        data = yaml.safe_load(storage.read_text(uri))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"{uri} is damaged: {error}. Restore it, or let `manygate train EXPERIMENT` write it again."
        ) from error
    try:
        return parse_experiment(data, uri)
    except UserError as error:
        raise UserError(
            f"{error}\nIt was written by another version of Manygate, or changed since: use that version for this run."
        ) from None


def dump_experiment(experiment: Experiment) -> str:
    """The resolved experiment as YAML, every default written out."""
    return yaml.dump(experiment.model_dump(mode="json"), Dumper=ExperimentDumper, sort_keys=False)


def apply_override(data: dict[str, Any], override: str) -> None:
    """Applies one ``path.to.key=value`` in place; a list element is named by its index or its `name`."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"{override!r} is not an override: expected key=value, such as training.epochs=3.")
    try:
        value = yaml.load(text, Loader=ExperimentLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise UserError(f"The value of the override {override!r} is not valid YAML: {error}") from error
    *parents, last = path.split(".")
    node: Any = data
    for i, part in enumerate(parents):
        node = _child(node, part, ".".join(parents[: i + 1]))
    if isinstance(node, list):
        node[_index(node, last, path)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UserError(f"Override {override!r}: {'.'.join(parents)} is a single value and has no {last!r}.")


def _child(node: Any, part: str, path: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, path)]
    if not isinstance(node, dict):
        raise UserError(f"Override of {path}: the part before {part!r} is a single value and has no keys.")
    if node.get(part) is None:
        node[part] = {}
    return node[part]


def _index(node: list[Any], part: str, path: str) -> int:
    names = [item.get("name") if isinstance(item, dict) else None for item in node]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(node):
        return int(part)
    known = [str(name) for name in names if name] or [f"0 to {len(node) - 1}"]
    raise UserError(f"Override of {path}: the list has no element {part!r}; {nearest(part, known)}")


def without_other_kinds(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """For a value that may be a text or a number and is neither, only the error that it is no text."""
    places = {error["loc"][:-1] for error in errors if _is_text_of_union(error)}
    return [error for error in errors if _is_text_of_union(error) or error["loc"][:-1] not in places]


def _is_text_of_union(error: ErrorDetails) -> bool:
    """Whether a value that may be of several types is no text; pydantic adds the name of the type to its place."""
    return error["type"] == "string_type" and error["loc"][-1] == "str"


def describe_error(error: ErrorDetails) -> str:
    """One line per mistake: path, what was expected, what was found, the nearest valid name."""
    location = list(error["loc"][:-1] if _is_text_of_union(error) else error["loc"])
    # Leaves out the names of kinds, which are not keys of the file.
    path = ".".join(str(part) for i, part in enumerate(location) if part not in _kinds_at(location[:i]))
    kind, found = error["type"], error.get("input")
    if kind == "extra_forbidden":
        known = [name for section in _sections_at(location[:-1]) for name in section.model_fields]
        return f"{path}: unknown key; {nearest(str(location[-1]), known)}"
    if kind == "missing":
        return f"{path}: missing: this key is required"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        expected = error.get("ctx", {}).get("expected_tags", "")
        names = [tag.strip().strip("'") for tag in str(expected).split(",")] if expected else []
        tag = str(error.get("ctx", {}).get("tag", ""))
        hint = nearest(tag, names) if tag else "the key `kind` is missing"
        return f"{path}.kind: expected one of {', '.join(names) or 'the kinds in the README'}; found {tag!r}; {hint}"
    text = describe_text(found, is_scenario=not {"scenarios", "only"}.isdisjoint(location))
    if kind == "string_type" and text is not None:
        return f"{path}: {text}"
    message = error["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path}: {message[0].lower()}{message[1:]}; found {describe_found(found)}"


def _sections_at(location: list[int | str]) -> list[type[BaseModel]]:
    """The section classes that an error path leads to: one, or those of all kinds if it does not name the kind."""
    sections: list[type[BaseModel]] = [Experiment]
    for part in location:
        if isinstance(part, int):
            continue
        of_kind = [section for section in sections if kind_of(section) == part]
        owners = [section for section in sections if part in section.model_fields]
        below = _sections(owners[0].model_fields[part].annotation) if owners else []
        sections = of_kind or below
    return sections


def _kinds_at(location: list[int | str]) -> list[str | None]:
    return [kind_of(section) for section in _sections_at(location)]


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """All section classes inside an annotation, through lists, unions and options."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections(argument)]
