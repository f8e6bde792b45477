"""The functions of the commands that use a Ray cluster; the others are in `jobs.commands`."""

import argparse


def submit(args: argparse.Namespace) -> int:
    from jobs import submit

    return submit.run(
        args.job,
        address=args.address,
        follow_log=args.follow,
        dry_run=args.dry_run,
        include=args.include,
        env=args.env,
        secret=args.secret,
    )


def status(args: argparse.Namespace) -> int:
    from jobs import submitted

    return submitted.status(args.id, args.address)


def logs(args: argparse.Namespace) -> int:
    from jobs import submitted

    return submitted.logs(args.id, args.address, follow_log=args.follow, as_json=args.json)


def stop(args: argparse.Namespace) -> int:
    from jobs import submitted

    return submitted.stop(args.id, args.address)
