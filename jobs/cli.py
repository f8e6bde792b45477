"""The command line: parses it, calls the command and turns the result into an exit code."""

import sys

if __name__ == "__main__":  # python -m jobs.cli: the guard runs before any other module of ours is imported
    from manygate_guard import refuse_foreign_packages

    refuse_foreign_packages()

import argparse
import traceback
from collections.abc import Callable, Sequence
from difflib import get_close_matches

from jobs import cluster_commands, commands
from jobs.arguments import COMMANDS, TAKES_EXPERIMENT, build_parser
from pipeline.console import configure_logging
from pipeline.errors import UserError
from pipeline.secret_files import read_secrets
from pipeline.workers.stop import INTERRUPTED_EXIT_CODE, InterruptedRunError

HANDLERS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "doctor": commands.doctor,
    "pipeline": commands.pipeline,
    "preprocess": commands.preprocess,
    "train": commands.train,
    "evaluate": commands.evaluate,
    "predict": commands.predict,
    "compare": commands.compare,
    "report": commands.report,
    "plan": commands.plan,
    "inspect": commands.inspect,
    "submit": cluster_commands.submit,
    "status": cluster_commands.status,
    "logs": cluster_commands.logs,
    "stop": cluster_commands.stop,
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command line, for `submit` also that of its job; exits with code 2 if it is wrong."""
    parser = build_parser()
    first = next((word for word in argv if not word.startswith("-")), None)
    if first is not None and first not in COMMANDS:
        close = get_close_matches(first, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(COMMANDS)}"
        parser.error(f"there is no command {first!r}; {hint}")
    args, rest = parser.parse_known_args(argv)
    if args.command == "submit":
        if not rest:
            parser.error("submit: which job? For example: manygate submit train EXPERIMENT --address URL")
        args.job = parse(rest)
        return args
    overrides = args.command in TAKES_EXPERIMENT
    wrong = [word for word in rest if word.startswith("-") or "=" not in word or not overrides]
    if wrong:
        expected = "one of its flags or key=value" if overrides else "one of its flags"
        parser.error(f"{args.command}: {' '.join(wrong)} is not known here: expected {expected}")
    args.overrides = rest
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns its exit code: 0, 2 for a user's mistake, 130 when interrupted, or the job's own."""
    args = parse(sys.argv[1:] if argv is None else argv)
    configure_logging(args.log_format or "text")
    try:
        read_secrets()
        return HANDLERS[args.command](args) or 0
    except UserError as error:
        if args.debug:
            traceback.print_exc()
        print(f"manygate: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # the system's message, such as "permission denied", says what is wrong
        if args.debug:
            traceback.print_exc()
        print(f"manygate: {error} (--debug shows where)", file=sys.stderr)
        return 2
    except InterruptedRunError:
        return INTERRUPTED_EXIT_CODE
    except KeyboardInterrupt:
        print("manygate: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
