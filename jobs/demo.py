"""`make demo`: the whole pipeline on the bundled logs. Each step is a command that a person would type.

Raw logs become a feature table; two workers train; the run is stopped in the middle, as a preempted machine would be;
the same command resumes it exactly; the best checkpoint is evaluated; a report is written.
"""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

EXPERIMENT = "examples/kuairand/experiment.yaml"
NAME = "demo"
FOLDER = Path("runs") / NAME
STOP_AFTER = FOLDER / "checkpoints" / "step-00000100" / "complete.json"


def main() -> int:
    """Runs all steps. Returns the exit code of the first step that fails, or 0."""
    start = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    train = ["train", EXPERIMENT, f"name={NAME}", "--launcher", "ray", "--workers", "2"]
    steps = [
        ("Raw logs to a feature table", ["preprocess", EXPERIMENT, f"name={NAME}"], None),
        ("Training on two workers, stopped in the middle", train, STOP_AFTER),
        ("The same command again: it resumes where it was stopped", train, None),
        (
            "The best checkpoint on the test days",
            ["evaluate", EXPERIMENT, f"name={NAME}", "--checkpoint", "best"],
            None,
        ),
        ("The whole run on one page", ["report", EXPERIMENT, f"name={NAME}"], None),
    ]
    for number, (title, command, stop_after) in enumerate(steps, start=1):
        print(f"\n[{number}/{len(steps)}] {title}\n$ manygate {' '.join(command)}", flush=True)
        code = run_step(command, stop_after)
        if code != 0:
            print(f"The demo ends here: the command above failed with exit code {code}.", file=sys.stderr)
            return code
    print(f"\nDone in {time.monotonic() - start:.0f} s. Open {FOLDER}/report.html in a browser. Beside it: the feature")
    print("table, checkpoints, metrics.jsonl, and curves for: .venv/bin/tensorboard --logdir runs")
    return 0


def run_step(command: list[str], stop_after: Path | None) -> int:
    """Runs one command; sends it SIGTERM as soon as the file `stop_after` exists, if there is one."""
    from pipeline.workers.stop import INTERRUPTED_EXIT_CODE

    process = subprocess.Popen([sys.executable, "-m", "jobs.cli", *command])  # noqa: S603 - our own command line
    if stop_after is None:
        return process.wait()
    while process.poll() is None and not stop_after.exists():
        time.sleep(0.1)
    print("--- the demo now stops this run with SIGTERM", flush=True)
    process.send_signal(signal.SIGTERM)
    code = process.wait()
    return 0 if code == INTERRUPTED_EXIT_CODE else code or 1


if __name__ == "__main__":
    sys.exit(main())
