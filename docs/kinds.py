"""Writes the tables in docs/models.md from the sections of the configuration and from the trunk classes:

    .venv/bin/python docs/kinds.py

A test fails if a table is out of date.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from models.build import build_trunk
from models.config import BottomConfig, TrunkConfig
from models.inputs import ModelInputs, Task
from models.loss_config import LOSSES, LossConfig
from models.section import ModelSection, sections_by_kind

PAGE = Path(__file__).parent / "models.md"
INPUTS = ModelInputs((), (), 0, (("a", "b"),), (Task("t", "binary"),), ("level",))


def description(section: type[ModelSection]) -> str:
    return " ".join((section.__doc__ or "").split()).removesuffix(".")


def options(section: type[ModelSection]) -> str:
    """Keys with their defaults, in the notation of the experiment file."""
    found = []
    for name, field in section.model_fields.items():
        if name != "kind":
            default = "required" if field.is_required() else str(field.default).replace("False", "false")
            found.append(f"`{name}` ({default})")
    return ", ".join(found)


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
        yield f"| `{name}`{f' ({keys})' if keys else ''} | {use} | {facts.predicts} |"


def with_tables(page: str) -> str:
    """Returns the page with up-to-date tables."""
    for name, lines in (("bottoms", bottoms()), ("trunks", trunks()), ("losses", losses())):
        table = "\n".join(lines)
        page, found = re.subn(
            rf"(<!-- {name}: .*? -->\n).*?(\n<!-- end -->)", lambda m, t=table: m[1] + t + m[2], page, flags=re.DOTALL
        )
        assert found == 1, f"{PAGE} needs exactly one place for the table of {name}, not {found}"
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
