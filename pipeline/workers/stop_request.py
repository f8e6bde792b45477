"""Workers agree on a request to stop."""

import torch
import torch.distributed as dist

from pipeline.workers.stop import Stop
from pipeline.workers.worker import Worker


class StopRequest:
    """The most urgent request that any worker has received. The all-reduce overlaps with the step."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._level = torch.zeros(1)
        self._work: dist.Work | None = None

    def start(self) -> None:
        """Starts the all-reduce; called before a step."""
        self._level.fill_(float(self._worker.stop.level))
        self._work = dist.all_reduce(self._level, op=dist.ReduceOp.MAX, group=self._worker.control, async_op=True)

    def wait(self) -> Stop:
        """Waits for the result, the same on every worker; called after the step."""
        assert self._work is not None
        self._work.wait()
        return Stop(int(self._level.item()))
