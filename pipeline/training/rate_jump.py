"""Learning rates that jump where a run resumes, because the experiment was changed since."""

from pipeline.checkpoint.progress import Progress
from pipeline.config.training import TrainingConfig
from pipeline.sharding.optimizers import schedule_factor
from pipeline.table.settings import differences

LEAST_JUMP = 0.1
"""Smallest change, as a share of the larger rate, that is reported."""

DECISIVE: dict[str, bool | set[str]] = {
    **{"epochs": True, "max_steps": True, "schedule": True},
    **{"sparse_optimizer": {"lr"}, "dense_optimizer": {"lr"}},
}
"""The keys of `training` that decide the learning rates."""


def describe_jump(saved: TrainingConfig, training: TrainingConfig, progress: Progress) -> str | None:
    """A sentence with the rates of the last and the next step, the cause, and what to do; None if they do not jump.

    A schedule that continues as it was is no jump, however fast it changes the rates.

    Args:
        saved: of the checkpoint.
        training: of the run that resumes from it.
        progress: of the checkpoint.
    """
    step, window = progress.step_in_window, progress.window
    if step == 0 or progress.ending(training) is not None:
        return None
    total_before, total = window.total_steps(saved), window.total_steps(training)
    last = _rates(saved, step - 1, total_before)
    planned, following = _rates(saved, step, total_before), _rates(training, step, total)
    jumps = [
        f"{name} {last[name]:.3g} -> {rate:.3g}"
        for name, rate in following.items()
        if _differ(rate, last[name]) and _differ(rate, planned[name])
    ]
    if not jumps:
        return None
    old, new = (settings.model_dump(mode="json", include=DECISIVE) for settings in (saved, training))
    text = f"The learning rates jump at step {progress.step + 1}: {', '.join(jumps)}, because of "
    text += f"{'; '.join(differences(old, new, 'training'))}."
    if total != total_before and training.schedule.decay != "constant":
        first = window.first_step
        text += f" The schedule now ends at step {first + total}, and ended at step {first + total_before}."
    keys = [f"training.{name}_optimizer.lr={rate:.3g}" for name, rate in last.items()]
    return (
        f"{text} To continue at the last rates: training.schedule.decay=constant training.schedule.warmup_steps=0 "
        f"{' '.join(keys)}"
    )


def _rates(training: TrainingConfig, step: int, total: int) -> dict[str, float]:
    """The learning rates of the step with this number in its window, counted from 0."""
    factor = schedule_factor(training.schedule, step, total)
    return {"sparse": factor * training.sparse_optimizer.lr, "dense": factor * training.dense_optimizer.lr}


def _differ(one: float, other: float) -> bool:
    return abs(one - other) > LEAST_JUMP * max(one, other)
