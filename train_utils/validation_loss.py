"""Compute the losses of training on the images of the validation set."""

import copy
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader
from tqdm import tqdm

from network_files import MaskRCNN
from network_files.image_transform import ImageTransform
from train_utils.device import Precision
from train_utils.distributed import is_main, report_activity, sum_over_processes
from train_utils.engine import to_device
from train_utils.loaders import mix_seed
from transforms import select_objects

NAMES = ("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")


@torch.no_grad()
def validation_losses(
    model: MaskRCNN, loader: DataLoader, device: torch.device, precision: Precision, seed: int, with_empty: bool
) -> dict[str, float]:
    """Compute "loss" and its parts as means over the images of an evaluation; all processes call this together.

    They are computed as in training, but with the running statistics of BatchNorm and at the size of evaluation. The
    draws of RPN and heads depend on seed and images alone, so that they are the same after each epoch, and those of the
    training stay what they are.

    Args:
        loader: this process's share of the images.
        with_empty: whether images without objects count too, as in training with --keep-empty.

    Returns:
        The same on every process; nothing, if there are no images.
    """
    network = copy.deepcopy(model).train()
    for module in network.modules():
        if isinstance(module, _BatchNorm | ImageTransform):
            module.eval()
    sums = torch.zeros(len(NAMES) + 1, dtype=torch.float64)  # of the losses, and the number of images
    bar = tqdm(loader, desc="validation loss", unit="batch", disable=None if is_main() else True)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for images, targets in bar:
            report_activity("computing the validation loss")
            kept = [trainable(image, target) for image, target in zip(images, targets) if "unreadable" not in target]
            kept = [(image, target) for image, target in kept if with_empty or len(target["labels"])]
            if not kept:
                continue
            images, targets = zip(*kept)
            torch.manual_seed(mix_seed(seed, *(abs(target["image_id"]) for target in targets)))
            with precision.autocast():
                losses = network.losses(to_device(images, device), targets)
            values = torch.stack([losses[name].double() for name in NAMES]).cpu()
            sums += len(kept) * torch.cat((values, values.new_ones(1)))
    *totals, count = sum_over_processes(sums.to(device)).tolist()
    means = {name: total / count for name, total in zip(NAMES, totals) if count}
    return {"loss": sum(means.values()), **means} if means else {}


def trainable(image: torch.Tensor, target: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
    """An item of an evaluation without what training leaves out: crowds, and objects without a box."""
    boxes = target["boxes"]
    return image, select_objects(target, (target["iscrowd"] == 0) & (boxes[:, 2:] > boxes[:, :2]).all(dim=1))
