"""Text on the terminal: log lines of Manygate and of other libraries."""

import logging
import warnings

from manygate_guard import PACKAGES

# Loggers that report every kernel and block, and deprecations that only their own authors can act on.
NOISY = {
    "torchrec": logging.WARNING,
    "torchrec.distributed.planner": logging.ERROR,
    "torch.fx": logging.ERROR,
    "fbgemm_gpu": logging.WARNING,
    "ray.train": logging.WARNING,
    "ray._private.runtime_env": logging.ERROR,  # reports that submit leaves out .git and .venv, as it should
}


def configure_logging() -> None:
    """Sends log lines with a time to stderr. Called in every process that a person may watch, workers included."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    for name in PACKAGES:
        logging.getLogger(name).setLevel(logging.INFO)
    for name, level in NOISY.items():
        logging.getLogger(name).setLevel(level)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
