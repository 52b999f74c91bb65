"""Build the optimizer, compute the learning rate of each step, and apply a step's gradients.

The device decides whether to apply a step, so that the host need not wait. A step is not applied if its loss is not
finite, if a GradScaler finds gradients that overflow fp16, or if gradients are clipped and their norm is not finite.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.optim import SGD, AdamW, Optimizer

from train_utils.options import TrainSettings

NORMALISATIONS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm)


def build_optimizer(model: nn.Module, settings: TrainSettings) -> Optimizer:
    """Build a fused SGD with momentum, or a fused AdamW, over the trained parameters."""
    groups = parameter_groups(model, settings.weight_decay, settings.norm_weight_decay)
    if settings.opt == "adamw":
        return AdamW(groups, settings.lr, weight_decay=settings.weight_decay, fused=True)
    optimizer = SGD(groups, settings.lr, settings.momentum, weight_decay=settings.weight_decay, fused=True)
    create_momentum(optimizer)
    return optimizer


def parameter_groups(
    model: nn.Module, weight_decay: float, norm_weight_decay: float | None = None
) -> list[dict[str, Any]]:
    """Group the trained parameters by weight decay. `norm_weight_decay` is for normalisation layers, unless it is None.

    Empty groups are omitted. As in torchvision's scripts, biases of other layers decay with the rest.
    """
    norms = [m for m in model.modules() if isinstance(m, NORMALISATIONS) and norm_weight_decay is not None]
    of_norms = {parameter for norm in norms for parameter in norm.parameters(recurse=False)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p in of_norms], "weight_decay": norm_weight_decay},
        {"params": [p for p in trained if p not in of_norms], "weight_decay": weight_decay},
    ]
    return [group for group in groups if group["params"]]


def create_momentum(optimizer: Optimizer) -> None:
    """Set missing momentum to zeros. Fused SGD leaves momentum uninitialised if a GradScaler skips the first step."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            if optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def learning_rate(step: int, settings: TrainSettings, steps_per_epoch: int) -> float:
    """Return the learning rate after `step` steps: linear warm-up, then drops at given epochs, or a cosine.

    The warm-up rises from 1/1000 over the first min(1000, one epoch) steps (Goyal et al., "Accurate, Large Minibatch
    SGD", arXiv:1706.02677, section 2.2). The drops are those of Mask R-CNN, section 3.1, "Training". The cosine is half
    a wave from 1 in the first epoch to 0 after the last (Loshchilov and Hutter, arXiv:1608.03983, eq. 5). It falls
    between epochs, not within them. All this is as in torchvision's scripts.
    """
    warm_up = min(1.0, 0.001 + 0.999 * step / warm_up_steps(steps_per_epoch))
    epochs = step / steps_per_epoch
    if settings.lr_scheduler == "cosineannealinglr":
        decay = (1 + math.cos(math.pi * math.floor(epochs) / settings.epochs)) / 2
    else:
        decay = settings.lr_gamma ** sum(epochs >= drop for drop in settings.lr_steps)
    return settings.lr * (warm_up * decay)


def warm_up_steps(steps_per_epoch: int) -> int:
    return min(1000, steps_per_epoch)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def backward(loss: Tensor, scaler: torch.amp.GradScaler) -> None:
    """Compute the gradients. If the loss is not finite, make every gradient NaN, so that a GradScaler detects it."""
    if scaler.is_enabled():
        loss = loss * (1 + 0 * loss.detach())
    scaler.scale(loss).backward()


def optimizer_step(
    optimizer: Optimizer, scaler: torch.amp.GradScaler, finite: Tensor, clip_grad_norm: float | None = None
) -> Tensor:
    """Update the weights if the loss is finite. Return whether they were updated, a bool scalar on the device.

    With a GradScaler or `clip_grad_norm`, the gradients must be finite, too.

    Args:
        optimizer: a fused optimizer, which reads `found_inf` on the device.
        finite: bool scalar on the device, whether the loss is finite; the same on all processes.
        clip_grad_norm: check the gradients' norm over all weights, and scale it down to at most this.
    """
    if clip_grad_norm is not None:
        scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        finite = finite & nn.utils.clip_grad_norm_(parameters, clip_grad_norm).isfinite()
    if not scaler.is_enabled():
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]
        return finite
    found: list[Tensor] = []
    hook = optimizer.register_step_pre_hook(lambda *_: found.append(getattr(optimizer, "found_inf")))  # noqa: B009
    scaler.step(optimizer)
    hook.remove()
    scaler.update()
    return finite & (found[0] == 0)


class RunningStatistics:
    """Backup of BatchNorm's running statistics, which restores them if the step is not applied."""

    def __init__(self, model: nn.Module):
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
        buffers = [buffer for norm in norms for buffer in norm.buffers()]
        self.by_type = [[b for b in buffers if b.dtype == dtype] for dtype in dict.fromkeys(b.dtype for b in buffers)]
        self.kept = [flat(group) for group in self.by_type]

    def __enter__(self) -> "RunningStatistics":
        return self

    def __exit__(self, error: type | None, *_: object) -> None:
        if error is not None:
            self.copy_back(self.kept)

    def restore_unless(self, applied: Tensor) -> None:
        """Restore the statistics unless `applied`, a bool scalar on the device, is true."""
        self.copy_back([torch.where(applied, flat(now), kept) for now, kept in zip(self.by_type, self.kept)])

    def copy_back(self, values: list[Tensor]) -> None:
        for buffers, whole in zip(self.by_type, values):
            parts = whole.split([b.numel() for b in buffers])
            torch._foreach_copy_(buffers, [part.view_as(b) for part, b in zip(parts, buffers)])


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])
