"""The learning rate of each step: linear warm-up, then drops at given epochs or a cosine over all epochs."""

import math
from collections.abc import Callable, Iterable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from train_utils.options import TrainSettings

Decay = Callable[[float], float]  # epochs that are done, a number with its fraction -> factor of the rate


def learning_rate_schedule(optimizer: Optimizer, steps_per_epoch: int, decay: Decay) -> LambdaLR:
    """Linear warm-up from 1/1000 over the first min(1000, one epoch) steps; times `decay`.

    Warm-up as in Goyal et al., "Accurate, Large Minibatch SGD" (arXiv:1706.02677), section 2.2. Both factors are those
    of torchvision's scripts.
    """
    warm_up = min(1000, steps_per_epoch)

    def factor(step: int) -> float:
        warmth = min(1.0, 0.001 + 0.999 * step / warm_up)
        return warmth * decay(step / steps_per_epoch)

    return LambdaLR(optimizer, factor)


def decay_of(settings: TrainSettings) -> Decay:
    """The decay that `--lr-scheduler` names."""
    if settings.lr_scheduler == "cosineannealinglr":
        return cosine_decay(settings.epochs)
    return step_decay(settings.lr_steps, settings.lr_gamma)


def step_decay(epochs: Iterable[float], gamma: float) -> Decay:
    """Times `gamma` at each of the epochs, as in Mask R-CNN, section 3.1, "Training"."""
    epochs = list(epochs)
    return lambda done: gamma ** sum(done >= drop for drop in epochs)


def cosine_decay(epochs: int) -> Decay:
    """Half a cosine from 1 in the first epoch to 0 after the last (Loshchilov and Hutter, arXiv:1608.03983, eq. 5).

    It falls between epochs, as in torchvision's scripts, not within them.
    """
    return lambda done: (1 + math.cos(math.pi * math.floor(done) / epochs)) / 2


def set_schedule(schedule: LambdaLR, step: int) -> None:
    """Set a schedule and its optimizer's rates to their state after a number of steps."""
    rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas)]
    for group, rate in zip(schedule.optimizer.param_groups, rates):
        group["lr"] = rate
    done = {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates}
    schedule.load_state_dict(schedule.state_dict() | done)
