"""P(task | after): a binary task over the rows where the task before it happened, such as a sale after a click."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config.logs import TaskConfig


@dataclass(frozen=True)
class ConditionalTask:
    """A binary task with `after`, as one more task: its label exists only where the task before it happened."""

    config: TaskConfig  # the task's, with the name TASK_given_AFTER
    task: int  # index of the task
    after: int  # index of the task right before it


def conditional_tasks(tasks: Sequence[TaskConfig]) -> list[ConditionalTask]:
    """One for each binary task that has `after`, in the order of the tasks."""
    index = {task.name: i for i, task in enumerate(tasks)}
    return [
        ConditionalTask(
            task.model_copy(update={"name": f"{task.name}_given_{task.after}"}), index[task.name], index[task.after]
        )
        for task in tasks
        if task.kind == "binary" and task.after is not None
    ]


def with_conditional_tasks(tasks: Sequence[TaskConfig]) -> list[TaskConfig]:
    """The tasks, and after them the conditional ones: everything that is evaluated, in the order of its columns."""
    return [*tasks, *(conditional.config for conditional in conditional_tasks(tasks))]
