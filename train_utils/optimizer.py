"""Build the optimizer of a run: SGD or AdamW, with a weight decay of its own for normalisation layers if asked for."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.optim import SGD, AdamW, Optimizer

from train_utils.options import TrainSettings

NORMALISATIONS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm)


def build_optimizer(model: nn.Module, settings: TrainSettings) -> Optimizer:
    """SGD with momentum, or AdamW, over the trained parameters; both as one fused operation per step."""
    groups = parameter_groups(model, settings.weight_decay, settings.norm_weight_decay)
    if settings.opt == "adamw":
        return AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    return SGD(
        groups, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay, fused=True
    )  # fmt: skip


def parameter_groups(
    model: nn.Module, weight_decay: float, norm_weight_decay: float | None = None
) -> list[dict[str, Any]]:
    """Collect the trained parameters: one group, or with `norm_weight_decay` first those of normalisation layers.

    Groups without parameters are left out. As in torchvision's scripts, biases of other layers decay with the rest.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if norm_weight_decay is None:
        return [{"params": trained, "weight_decay": weight_decay}]
    of_norms = {p for m in model.modules() if isinstance(m, NORMALISATIONS) for p in m.parameters(recurse=False)}
    groups = [
        {"params": [p for p in trained if p in of_norms], "weight_decay": norm_weight_decay},
        {"params": [p for p in trained if p not in of_norms], "weight_decay": weight_decay},
    ]
    return [group for group in groups if group["params"]]
