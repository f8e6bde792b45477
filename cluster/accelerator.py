"""Whether this machine has an NVIDIA GPU. Standard library only: the installer asks before anything is installed."""

import shutil
import subprocess


def find_accelerator() -> str:
    """`cuda` where nvidia-smi lists a GPU, else `cpu`."""
    if shutil.which("nvidia-smi") is None:
        return "cpu"
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)  # noqa: S607
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "cuda" if listed.returncode == 0 and "GPU " in listed.stdout else "cpu"
