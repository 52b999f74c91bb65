"""The learning rate of each step: linear warm-up, then drops."""

from collections.abc import Iterable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def learning_rate_schedule(
    optimizer: Optimizer, steps_per_epoch: int, lr_steps: Iterable[int], gamma: float
) -> LambdaLR:
    """Linear warm-up from 1/1000 over the first min(1000, one epoch) steps; times `gamma` at each epoch of `lr_steps`.

    Warm-up as in Goyal et al., "Accurate, Large Minibatch SGD" (arXiv:1706.02677), section 2.2; drops as in Mask R-CNN,
    section 3.1, "Training".
    """
    warm_up = min(1000, steps_per_epoch)
    drops = [epoch * steps_per_epoch for epoch in lr_steps]

    def factor(step: int) -> float:
        warmth = min(1.0, 0.001 + 0.999 * step / warm_up)
        return warmth * gamma ** sum(step >= drop for drop in drops)

    return LambdaLR(optimizer, factor)


def set_schedule(schedule: LambdaLR, step: int) -> None:
    """Set a schedule and its optimizer's rates to their state after a number of steps."""
    rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas)]
    for group, rate in zip(schedule.optimizer.param_groups, rates):
        group["lr"] = rate
    done = {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates}
    schedule.load_state_dict(schedule.state_dict() | done)
