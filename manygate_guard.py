"""Checks that Python finds our packages, and not others of the same name.

Our packages have common names, and another package of such a name can come first on Python's path. This module has a
name that no other package uses, so that Python finds it in any case. It imports none of our packages.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("pipeline", "models", "jobs", "cluster")
HOME = Path(__file__).resolve().parent


def refuse_foreign_packages() -> None:
    """Exits with code 2 and one sentence if Python would import another package in place of one of ours."""
    if foreign := find_foreign_package():
        print(f"manygate: {foreign}", file=sys.stderr)
        sys.exit(2)


def find_foreign_package(first_folder: Path | None = None) -> str | None:
    """An error message about the first package that Python would import in place of ours; None if there is none.

    Args:
        first_folder: a folder that comes before all others, as the current one does for Ray's workers.
    """
    for name in PACKAGES:
        found = None
        if first_folder is not None:
            # Searches the whole path: a folder without __init__.py counts only if no later entry has a package.
            found = PathFinder.find_spec(name, [str(first_folder), *sys.path])
        folder = location(found or find_spec(name))
        if folder is not None and folder != HOME / name:
            return (
                f"another package named {name!r} hides Manygate's own: Python finds {folder}, expected {HOME / name}; "
                "rename or uninstall it, or start in a folder and with a PYTHONPATH that do not contain it."
            )
    return None


def location(spec: ModuleSpec | None) -> Path | None:
    """The folder of a package, or the file of a module."""
    if spec is None:
        return None
    if spec.submodule_search_locations:  # a package, with or without __init__.py
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.origin else None
