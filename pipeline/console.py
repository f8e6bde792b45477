"""What reaches the terminal: our own messages, and other libraries' warnings."""

import logging
import warnings

OURS = ("pipeline", "models", "jobs", "cluster")
# Loggers that tell of every kernel and block, and of deprecations that only their own authors can act on.
TALKATIVE = {
    "torchrec": logging.WARNING,
    "torchrec.distributed.planner": logging.ERROR,
    "torch.fx": logging.ERROR,
    "fbgemm_gpu": logging.WARNING,
    "ray.train": logging.WARNING,
    "ray._private.runtime_env": logging.ERROR,  # tells that submit leaves .git and .venv out, as it should
}


def configure_logging() -> None:
    """Log lines with a time on stderr. In every process that a person may watch, workers included."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    for name, level in TALKATIVE.items():
        logging.getLogger(name).setLevel(level)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def in_bytes(size: float) -> str:
    """A number of bytes as a person says it: `1.4 MiB`."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
