"""Apply a step's gradients, or leave everything as it was, as the device decides: the host does not wait to know which.

A step is not applied where its loss is not finite, where a GradScaler finds gradients beyond fp16, or where gradients
are to be clipped and their norm is not finite.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer


def create_momentum(optimizer: Optimizer) -> None:
    """Give SGD's missing momentum buffers zeros, which in the first step is the same as none.

    The fused optimizer creates them uninitialised, and where a GradScaler skips the first step, they stay so.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            if optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def backward(loss: Tensor, scaler: torch.amp.GradScaler) -> None:
    """Compute gradients; where the loss is not finite, all of them are NaN, which a GradScaler then notices."""
    if scaler.is_enabled():
        loss = loss * (1 + 0 * loss.detach())
    scaler.scale(loss).backward()


def apply_gradients(
    optimizer: Optimizer, scaler: torch.amp.GradScaler, finite: Tensor, clip_grad_norm: float | None = None
) -> Tensor:
    """Update the weights, unless the loss is not finite or infinite gradients are found.

    Args:
        optimizer: a fused one, which reads on the device whether to do anything.
        finite: bool scalar on the device; the same on all processes.
        clip_grad_norm: scale the gradients so that their norm, over all weights, is at most this.

    Returns:
        bool scalar on the device, whether the weights were updated.
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
    """The buffers that a forward pass in training changes, and their values before it.

    Those of one type are kept in one tensor, so that a step starts few operations for them.
    """

    def __init__(self, model: nn.Module):
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
        buffers = [buffer for norm in norms for buffer in norm.buffers()]
        self.by_type = [[b for b in buffers if b.dtype == dtype] for dtype in dict.fromkeys(b.dtype for b in buffers)]
        self.kept = [flat(group) for group in self.by_type]

    def restore_unless(self, applied: Tensor) -> None:
        """Put the values back unless the bool scalar on the device is true."""
        for buffers, kept in zip(self.by_type, self.kept):
            chosen = torch.where(applied, flat(buffers), kept).split([b.numel() for b in buffers])
            torch._foreach_copy_(buffers, [values.view_as(b) for values, b in zip(chosen, buffers)])


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])
