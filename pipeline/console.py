"""Text on the terminal: log lines of Manygate and of other libraries."""

import logging
import sys
import warnings

from manygate_guard import PACKAGES
from pipeline.log_records import TEXT, JsonLines

# Loggers that report every kernel and block, and deprecations that only their own authors can act on.
NOISY = {
    "torchrec": logging.WARNING,
    "torchrec.distributed.planner": logging.ERROR,
    "torch.fx": logging.ERROR,
    "fbgemm_gpu": logging.WARNING,
    "ray.train": logging.WARNING,
    "ray._private.runtime_env": logging.ERROR,  # reports that submit leaves out .git and .venv, as it should
}


class _AboveBars(logging.StreamHandler):
    """Writes log lines above the progress bars of a terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def configure_logging(log_format: str = "text") -> None:
    """Sends log lines to stderr. Called in every process that a person may watch, workers included.

    Args:
        log_format: `text` for people, or `json` for one document of `log_records.py` per line.
    """
    handler = _AboveBars() if sys.stderr.isatty() else logging.StreamHandler()
    handler.setFormatter(JsonLines() if log_format == "json" else TEXT)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in PACKAGES:
        logging.getLogger(name).setLevel(logging.INFO)
    for name, level in NOISY.items():
        logging.getLogger(name).setLevel(level)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
