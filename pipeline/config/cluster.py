"""What each worker and each preprocessing task takes from the machines of a cluster."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pipeline.section import Section
from pipeline.sizes import parse_bytes


def _as_bytes(value: Any) -> Any:
    return parse_bytes(value) if isinstance(value, str) else value


Size = Annotated[int, BeforeValidator(_as_bytes), Field(ge=1)]
"""Bytes; in the experiment file also a text such as ``16GiB``."""


class ClusterConfig(Section):
    """Where workers run and what they reserve there. Changes no number, except through the number of threads."""

    placement: Literal["pack", "spread"] = "pack"
    """`pack` puts workers on as few machines as possible, `spread` on as many as possible."""
    cpus_per_worker: int | None = Field(default=None, ge=1)
    """CPUs that a worker reserves, and its threads; null: it reserves one CPU, and the workers of a machine share all
    CPUs as threads."""
    gpus_per_worker: int = Field(default=1, ge=1)
    """GPUs that a worker reserves, on CUDA."""
    memory_per_worker: Size | None = None
    """Memory that a worker reserves; also the most that the plan of the embedding tables assumes for it, on CPU."""
    memory_per_task: Size | None = None
    """Memory that a preprocessing task reserves."""
