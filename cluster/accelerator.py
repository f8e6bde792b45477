"""Detects an NVIDIA GPU. Standard library only, because the installer uses it before anything is installed."""

import shutil
import subprocess


def find_accelerator() -> str:
    """Returns `cuda` if nvidia-smi lists a GPU, otherwise `cpu`."""
    if shutil.which("nvidia-smi") is None:
        return "cpu"
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)  # noqa: S607
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "cuda" if listed.returncode == 0 and "GPU " in listed.stdout else "cpu"
