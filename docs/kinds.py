"""Writes the tables in docs/features.md and docs/models.md from the classes of the kinds:

    .venv/bin/python docs/kinds.py

A test fails if a table is out of date.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel

from models.build import build_trunk
from models.config import BottomConfig, TrunkConfig
from models.inputs import ModelInputs, Task
from models.loss_config import LOSSES, LossConfig
from models.section import sections_by_kind
from pipeline.features.kinds import FEATURE_KINDS

FOLDER = Path(__file__).parent
COMMON_KEYS = ("kind", "name", "column")
INPUTS = ModelInputs((), (), 0, (("a", "b"),), (Task("t", "binary"),), ("level",))


def description(section: type[BaseModel]) -> str:
    return " ".join((section.__doc__ or "").split()).removesuffix(".")


def options(section: type[BaseModel]) -> str:
    """Keys with their defaults, in the notation of the experiment file."""
    found = []
    for name, field in section.model_fields.items():
        if name not in COMMON_KEYS:
            default = (
                "required"
                if field.is_required()
                else str(field.default).replace("False", "false").replace("None", "null")
            )
            found.append(f"`{name}` ({default})")
    return ", ".join(found)


def features() -> Iterator[str]:
    yield "| kind | What it is | Its keys (default) |"
    yield "| --- | --- | --- |"
    for kind, feature in FEATURE_KINDS.items():
        yield f"| `{kind}` | {description(feature)} | {options(feature)} |"


def bottoms() -> Iterator[str]:
    yield "| kind | What it does | Options (default) |"
    yield "| --- | --- | --- |"
    for kind, section in sections_by_kind(BottomConfig).items():
        yield f"| `{kind}` | {description(section)} | {options(section)} |"


def trunks() -> Iterator[str]:
    yield "| kind | What is shared, what is not | Options (default) | Old predictions stay unchanged when adding |"
    yield "| --- | --- | --- | --- |"
    for kind, section in sections_by_kind(TrunkConfig).items():
        trunk = build_trunk(section.model_validate({"kind": kind}), INPUTS, 1)
        keeps = " or ".join(f"a {growth}" for growth in sorted(trunk.keeps_predictions)) or "nothing"
        yield f"| `{kind}` | {description(section)} | {options(section)} | {keeps} |"


def losses() -> Iterator[str]:
    yield "| `loss` | Use for | Prediction |"
    yield "| --- | --- | --- |"
    for name, facts in LOSSES.items():
        keys = ", ".join(f"`{key}`, {LossConfig.model_fields[key].default}" for key in facts.keys)
        use = facts.use + ("; no transform" if facts.of_amounts else "")
        use += "; needs `transform: log1p`" if facts.of_logarithms else ""
        yield f"| `{name}`{f' ({keys})' if keys else ''} | {use} | {facts.predicts} |"


TABLES: dict[str, dict[str, Callable[[], Iterator[str]]]] = {
    "features.md": {"features": features},
    "models.md": {"bottoms": bottoms, "trunks": trunks, "losses": losses},
}


def with_tables(file: str) -> str:
    """Returns a page of this folder with up-to-date tables."""
    page = (FOLDER / file).read_text()
    for name, lines in TABLES[file].items():
        table = "\n".join(lines())
        page, found = re.subn(
            rf"(<!-- {name}: .*? -->\n).*?(\n<!-- end -->)", lambda m, t=table: m[1] + t + m[2], page, flags=re.DOTALL
        )
        assert found == 1, f"{file} needs exactly one place for the table of {name}, not {found}"
    return page


if __name__ == "__main__":
    for file in TABLES:
        (FOLDER / file).write_text(with_tables(file))
