"""The YAML of experiment files: times and dates are texts as they were typed, and a duplicate key is an error."""

import json
import re
from dataclasses import dataclass
from typing import Any

import yaml

_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_EXPONENT = (_FLOAT, re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789"))
"""YAML 1.1 reads 1e-3 as a text; in an experiment it is always meant as a number."""
_PLAIN_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]+)?")

_PLACES_OF_VALUES = ("splits", "values", "only")
"""Keys below which a value is compared with texts of the log: 10:30 is a time there, and not the number 630."""


@dataclass(frozen=True)
class _SpeltNumber:
    """A number in another spelling than a decimal number: 10:30, 010, 0x1F, 1_000, 1e3."""

    number: int | float
    text: str


class ExperimentLoader(yaml.SafeLoader):
    """The safe loader, except that a date is a text, and that a duplicate key is an error.

    The safe loader silently takes the last of the duplicate keys.
    """

    yaml_implicit_resolvers = {
        first: [resolver for resolver in resolvers if resolver[0] != _TIMESTAMP]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key is None or isinstance(key, bool):  # which JSON would turn into the text "null" or "true"
                problem = f"YAML reads the key {key_node.value} without quotes as {json.dumps(key)}: put it in quotes"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            seen.append(key)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float | _SpeltNumber:
        read = self.construct_yaml_int if node.tag == _INT else self.construct_yaml_float
        number: int | float = read(node)
        return number if _PLAIN_NUMBER.fullmatch(node.value) else _SpeltNumber(number, node.value)


ExperimentLoader.add_constructor(_INT, ExperimentLoader.construct_number)
ExperimentLoader.add_constructor(_FLOAT, ExperimentLoader.construct_number)
ExperimentLoader.add_implicit_resolver(*_EXPONENT)


class ExperimentDumper(yaml.SafeDumper):
    """Writes texts so that both this loader and the safe loader read them as texts."""


ExperimentDumper.add_implicit_resolver(*_EXPONENT)


def with_typed_texts(data: Any, is_value: bool = False) -> Any:
    """Values of the log as they were typed; elsewhere, numbers in another spelling are plain numbers.

    Args:
        data: a part of an experiment.
        is_value: whether the part is below a key whose values are compared with the log.
    """
    if isinstance(data, dict):
        return {key: with_typed_texts(part, is_value or key in _PLACES_OF_VALUES) for key, part in data.items()}
    if isinstance(data, list):
        return [with_typed_texts(part, is_value) for part in data]
    if isinstance(data, _SpeltNumber):
        return data.text if is_value else data.number
    return data
