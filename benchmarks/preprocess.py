"""Preprocessing compared with Polars, and the counting of vocabularies compared with Ray Data.

    python -m benchmarks.preprocess --rows 2000000,5000000 [--scratch DIR] [--json FILE] [--vocabulary-rows 1000000]

For each size a log is generated. Both sides preprocess it in turn, in separate processes: ours with the
interpreter that runs this module, Polars (`benchmarks.peers.polars_preprocess`) with that of `.venv-peers`. Both must
write all rows and find the same values in three columns. Our time starts when Ray is up, with no worker yet; the time
that Ray itself takes to start is reported separately. Imports before the work starts are not counted for either side.

Peak memory is that of the process, or for ours the greatest sum over the driver and Ray's workers: resident memory
minus shared memory, sampled ten times per second. Files in the page cache, Ray's object store and Ray's services are
not counted.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
PEERS_PYTHON = ROOT / ".venv-peers/bin/python"
VOCABULARY_ROWS = 1_000_000
COMPARED = ("c01", "c02", "c03")
DAYS = 10
ROUNDS, ROUNDS_LARGE, LARGE = 2, 1, 5_000_000
SAMPLE_S, LIST_S = 0.1, 0.5  # between two samples of the memory, and between two lists of the processes
RAY_OF_THE_NODE = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # not workers

Result = dict[str, Any]


class BenchmarkError(Exception):
    """A side failed, or did not do the work that it should."""


def measure(sizes: list[int], vocabulary_rows: int, scratch: str) -> Result:
    """Both contests. The scratch folder must have room for a log and two feature tables of the largest size.

    Raises:
        BenchmarkError: a side failed, or the two sides did not do the same work.
    """
    if not PEERS_PYTHON.exists():
        raise BenchmarkError("There is no .venv-peers: create it with `python -m benchmarks.peers.install`.")
    return {
        "sizes": [contest(rows, Path(scratch).absolute()) for rows in sizes],
        "vocabulary": vocabulary_contest(vocabulary_rows, Path(scratch).absolute()),
    }


def contest(rows: int, scratch: Path) -> Result:
    """Ours and Polars in turn, on one log."""
    log = make_log(rows, scratch)
    found: dict[str, list[Result]] = {"ours": [], "polars": []}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for _ in range(ROUNDS_LARGE if rows >= LARGE else ROUNDS):
            outputs = {side: Path(folder, side) for side in found}
            found["ours"].append(run(*ours("features", log, outputs["ours"])))
            found["polars"].append(run(*polars(log, outputs["polars"])))
            check_same_work(rows, outputs)
            for output in outputs.values():
                shutil.rmtree(output)
    sides = {side: summary(rows, rounds) for side, rounds in found.items()}
    ratio = sides["ours"]["rows_per_second"] / sides["polars"]["rows_per_second"]
    return {"rows": rows, **sides, "ratio": ratio}


def vocabulary_contest(rows: int, scratch: Path) -> Result:
    """Our counting of three columns compared with two ways of Ray Data, in one process."""
    log = make_log(rows, scratch)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        rounds = run(*ours("vocabularies", log, Path(folder, "table")))
    seconds = {way: statistics.median(rounds[way]) for way in ("ours_s", "ray_groupby_s", "ordinal_encoder_s")}
    return {"rows": rows, **seconds, "ratio": seconds["ray_groupby_s"] / seconds["ours_s"]}


def make_log(rows: int, scratch: Path) -> Path:
    """The log of this size; generated unless an earlier call has done so."""
    log = scratch / f"log-{rows}"
    if not log.exists():
        unfinished = log.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        settings = ["--rows", str(rows), "--days", str(DAYS), "--behaviours", "0"]
        command = [sys.executable, "-m", "examples.synthetic.generate", str(unfinished), *settings]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)  # noqa: S603
        if done.returncode:
            raise BenchmarkError(f"The log of {rows:,} rows was not generated:\n{done.stderr[-2000:]}")
        unfinished.rename(log)
    return log


def environment() -> dict[str, str]:
    return {**os.environ, "RAY_ADDRESS": "local"}  # never a head that somebody else has started


def ours(work: str, log: Path, table: Path) -> tuple[str, list[str]]:
    return f"ours ({work})", [sys.executable, "-m", "benchmarks.preprocess_once", work, str(log), str(table)]


def polars(log: Path, output: Path) -> tuple[str, list[str]]:
    return "Polars", [str(PEERS_PYTHON), "-m", "benchmarks.peers.polars_preprocess", str(log), str(output)]


def run(name: str, command: list[str]) -> Result:
    """Runs one side to its end and returns what it reports, with its peak memory as measured here."""
    os.sync()  # so that this side does not wait for writes of the previous side
    with tempfile.TemporaryFile("w+") as answers, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=answers, stderr=errors)  # noqa: S603
        peak = max(memory(process), default=0)
        if process.wait():
            errors.seek(0)
            raise BenchmarkError(f"{name} ended with {process.returncode}:\n{errors.read()[-2000:]}")
        answers.seek(0)
        reported: Result = json.loads(answers.read())
    return reported | {"peak_bytes": peak}


def memory(process: "subprocess.Popen[bytes]") -> Iterator[int]:
    """Bytes of a process and the Ray workers below it, sampled until it ends."""
    members: list[psutil.Process] = []
    listed = -LIST_S
    while process.poll() is None:
        if time.monotonic() - listed >= LIST_S:
            members, listed = workers_of(process.pid), time.monotonic()
        yield sum(map(unshared, members))
        time.sleep(SAMPLE_S)


def workers_of(pid: int) -> list[psutil.Process]:
    """The process itself, and the workers of the Ray cluster that it has started."""
    found = []
    with suppress(psutil.NoSuchProcess):
        found.append(psutil.Process(pid))
        for child in found[0].children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess, IndexError):
                title = child.cmdline()[0]
                if title.startswith("ray::") and not title.startswith(RAY_OF_THE_NODE):
                    found.append(child)
    return found


def unshared(process: psutil.Process) -> int:
    """Resident minus shared memory, an estimate of the private memory that needs no scan of all pages."""
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        used = process.memory_info()
        return int(used.rss - used.shared)
    return 0


def check_same_work(rows: int, outputs: dict[str, Path]) -> None:
    """Raises BenchmarkError unless both sides wrote all rows and the ids of three columns are the same."""
    for side, output in outputs.items():
        written = sum(pq.read_metadata(file).num_rows for file in output.rglob("lane[-=]*/*.parquet"))
        if written != rows:
            raise BenchmarkError(f"{side} wrote {written:,} rows of {rows:,}.")
    for name in COMPARED:
        one, two = (
            pq.read_table(output / f"encoders/{name}.parquet").select(["value", "id", "count"]).to_pydict()
            for output in outputs.values()
        )
        if one != two:
            raise BenchmarkError(f"{name}: the vocabularies of ours and Polars differ.")


def summary(rows: int, rounds: list[Result]) -> Result:
    """The median of each figure, and the greatest peak memory."""
    medians = {key: statistics.median(result[key] for result in rounds) for key in rounds[0] if key.endswith("seconds")}
    rate = rows / medians["seconds"]
    return {**medians, "rows_per_second": rate, "peak_bytes": max(result["peak_bytes"] for result in rounds)}


def report(result: Result) -> None:
    """Prints the figures."""
    print("\n|       rows | ours rows/s | Polars rows/s | ours / Polars | ours peak | Polars peak | start of Ray |")
    print("| ---------: | ----------: | ------------: | ------------: | --------: | ----------: | -----------: |")
    for size in result["sizes"]:
        one, two = size["ours"], size["polars"]
        rates = f"{one['rows_per_second']:>11,.0f} | {two['rows_per_second']:>13,.0f} | {size['ratio']:>13.2f}"
        start = f"{one['connect_seconds']:.1f} s"
        print(f"| {size['rows']:>10,} | {rates} | {gigabytes(one):>9} | {gigabytes(two):>11} | {start:>12} |")
    counted = result["vocabulary"]
    print(f"\nVocabularies of three columns, {counted['rows']:,} rows: ours {counted['ours_s']:.1f} s, groupby of Ray ")
    print(f"Data {counted['ray_groupby_s']:.1f} s, OrdinalEncoder {counted['ordinal_encoder_s']:.1f} s; ", end="")
    print(f"vocabulary_vs_groupby {counted['ratio']:.2f}")


def gigabytes(side: Result) -> str:
    return f"{side['peak_bytes'] / 1e9:.2f} GB"


def main() -> None:
    """Measures the sizes that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", default="2000000", help="sizes of the log, separated by commas")
    parser.add_argument("--vocabulary-rows", type=int, default=VOCABULARY_ROWS)
    parser.add_argument("--scratch", help="folder for logs and tables; logs in it are kept for the next call")
    parser.add_argument("--json", type=Path, help="file to write the result to")
    arguments = parser.parse_args()
    sizes = [int(rows) for rows in arguments.rows.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        scratch = arguments.scratch or temporary
        Path(scratch).mkdir(parents=True, exist_ok=True)
        try:
            result = measure(sizes, arguments.vocabulary_rows, scratch)
        except BenchmarkError as error:
            sys.exit(str(error))
    report(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
