"""The command `manygate`, also `python -m manygate`."""

import sys
from collections.abc import Sequence

from manygate_guard import refuse_foreign_packages


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns its exit code. The guard runs before any other module of ours is imported."""
    refuse_foreign_packages()
    from jobs import cli

    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main())
