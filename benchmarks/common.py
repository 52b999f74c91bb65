"""Shared parts of the benchmarks: photos, machine description, timing, two networks with the same weights.

`python benchmarks/<script>.py` imports this file first, which makes the project's modules importable.
"""

import os
import platform
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection import maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from my_dataset_coco import CocoDetection  # noqa: E402
from network_files import MaskRCNN  # noqa: E402
from network_files.roi_heads import RoIHeads  # noqa: E402
from train_utils.errors import InputError, reading_input  # noqa: E402
from train_utils.models import ModelConfig, build_model, config_of  # noqa: E402
from train_utils.option_parsing import Parser  # noqa: E402
from train_utils.weight_files.weights import load_weights, read_weight_file, state_dict_of  # noqa: E402

Targets = Sequence[dict]


def parser(description: str) -> Parser:
    """Return an empty command-line parser whose --help is the script's docstring."""
    return Parser(description=description, formatter_class=RawDescriptionHelpFormatter)


def coco_tiny() -> Path:
    """Return the folder with 80 + 80 photos of COCO 2017; InputError names the remedy if it is missing."""
    data = Path(os.environ.get("MASKRCNN_TEST_DATA") or PROJECT.parent / "shared" / "data")
    folder = data / "coco_tiny"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; set MASKRCNN_TEST_DATA to the folder that holds coco_tiny/")
    return folder


def training_photos(count: int) -> tuple[list[Tensor], list[dict]]:
    """Load the first `count` items of coco_tiny's training set without transforms: images uint8 [3, H, W], targets."""
    with reading_input():
        dataset = CocoDetection(coco_tiny(), "train")
    if count > len(dataset):
        raise InputError(f"--batch-size {count}: coco_tiny has {len(dataset)} training photos")
    images, targets = dataset.collate_fn([dataset[i] for i in range(count)])
    return list(images), list(targets)


def as_in_torchvisions_reference(images: Sequence[Tensor], targets: Targets) -> tuple[list[Tensor], list[dict]]:
    """Convert photos to the form of torchvision's reference scripts: float images in 0..1, dense uint8 masks."""
    return [image / 255 for image in images], [dict(target, masks=target["masks"].dense()) for target in targets]


def on_device(
    network: nn.Module, images: Sequence[Tensor], targets: Targets, device: torch.device
) -> tuple[list[Tensor], Targets]:
    """Move a batch as the network's own training script does: all of it, or for this project's network the images."""
    images = [image.to(device, non_blocking=True) for image in images]
    if isinstance(network, MaskRCNN):
        return images, targets
    moved = [
        {key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for key, value in t.items()}
        for t in targets
    ]
    return images, moved


def describe(images: Sequence[Tensor], targets: Targets) -> str:
    """'000000008193 640x427 with 3 objects, ...'"""
    return ", ".join(
        f"{t['image_id']:012d} {i.shape[-1]}x{i.shape[-2]} with {len(t['labels'])} objects"
        for i, t in zip(images, targets)
    )


def machine(device: torch.device) -> str:
    """Describe processor, cores, versions and GPU in one line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"{processor()}, {cores} cores, {torch.get_num_threads()} threads", f"torch {torch.__version__}"]
    parts.append(f"torchvision {torchvision.__version__}")
    if device.type == "cuda":
        parts.append(f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}")
    return "; ".join(parts)


def processor() -> str:
    """Return the processor's name, from the kernel where possible, since Python's is less specific."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def build_pair(
    images: Sequence[Tensor],
    min_size: int,
    max_size: int,
    weights: str | None = None,
    num_classes: int = 91,
    proposals: int | None = None,
    rois_per_image: int = 512,
    arch: str = "v1",
) -> tuple[MaskRCNN, TorchvisionMaskRCNN]:
    """Build this project's network and torchvision's with the same weights and settings, by default for COCO's classes.

    As in fine-tuning, v1's BatchNorm is frozen, and stem and first stage are not trained; all of v2 is. The weights
    come from a file or from `random_weights`; `proposals` and `rois_per_image` are those of `ModelConfig`.
    """
    given = {"min_size": min_size, "max_size": max_size, "proposals": proposals, "rois_per_image": rois_per_image}
    norm, layers = ("batch", 5) if arch == "v2" else ("frozen", 3)
    config = ModelConfig(num_classes, arch, norm, trainable_layers=layers, **given)
    if weights is None:
        ours = build_model(config)
        ours.load_state_dict(random_weights(config, images), strict=True)
    else:
        with reading_input():
            content = read_weight_file(weights)
        state = state_dict_of(content, weights)
        config = replace(config_of(content, state), **given)
        ours = build_model(config)
        load_weights(ours, state, weights)
    theirs = build_torchvisions(config)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def build_torchvisions(config: ModelConfig) -> TorchvisionMaskRCNN:
    """Build torchvision's network like `maskrcnn_resnet50_fpn` or its v2, without downloading weights."""
    given: dict[str, Any] = {
        "min_size": config.min_size,
        "max_size": config.max_size,
        "box_batch_size_per_image": config.rois_per_image,
        "box_detections_per_img": config.detections,
        "box_nms_thresh": config.nms_thresh,
        **(dict.fromkeys(PROPOSALS, config.proposals) if config.proposals is not None else {}),
    }
    if config.anchor_sizes:
        ratios = tuple(config.anchor_ratios or (0.5, 1.0, 2.0))
        sizes = tuple((size,) for size in config.anchor_sizes)
        given["rpn_anchor_generator"] = AnchorGenerator(sizes, (ratios,) * len(sizes))
    if config.arch == "v2":
        given |= {"num_classes": config.num_classes, "trainable_backbone_layers": config.trainable_layers}
        return maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, **given)
    norm_class = FrozenBatchNorm2d if config.norm == "frozen" else nn.BatchNorm2d
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        norm_layer=partial(norm_class, eps=config.norm_eps),
        trainable_layers=config.trainable_layers,
    )
    return TorchvisionMaskRCNN(backbone, config.num_classes, **given)


def counterparts(own: Mapping[str, Tensor], reference: Mapping[str, Tensor], within: float) -> tuple[Tensor, Tensor]:
    """Match detections with the same label and boxes within so many pixels: indices [P] into each of the two.

    A detection is in one pair at most. Ranks are ignored: two scores that are equal up to rounding may swap.
    """
    distance = (own["boxes"][:, None] - reference["boxes"][None]).abs().amax(dim=-1)
    distance[own["labels"][:, None] != reference["labels"][None]] = torch.inf
    near = distance <= within
    pairs: list[tuple[int, int]] = []
    for i, j in torch.nonzero(near)[distance[near].argsort()].tolist():
        if all(i != other_i and j != other_j for other_i, other_j in pairs):
            pairs.append((i, j))
    i, j = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(dim=1)
    return i, j


@torch.no_grad()
def random_weights(config: ModelConfig, images: Sequence[Tensor]) -> dict[str, Tensor]:
    """Draw a random state dict with which the network does about as much work as a trained one.

    Initial weights would not: with frozen BatchNorm without statistics, activations grow from block to block or, where
    blocks begin as identities, vanish; and an untrained classifier is never confident enough for a detection. So
    BatchNorm gets the statistics of the photos, and the predictors' weights are large enough for varied proposals and
    for more candidates than the 100 detections kept per photo.
    """
    torch.manual_seed(0)
    model = build_model(replace(config, norm="batch"))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            module.momentum = None  # the running statistics become those of the one batch seen
    batch = model.transform(images)[0]
    features = model.backbone(batch.tensors)
    nn.init.normal_(model.rpn.head.cls_logits.weight, std=RPN_STD)
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=CLASS_STD)
    model.roi_heads.box_predictor.cls_score.bias[0] = BACKGROUND_BIAS
    nn.init.normal_(model.roi_heads.mask_predictor.mask_fcn_logits.weight, std=MASK_STD)
    if config.arch == "v2":
        give_statistics(model.roi_heads, features, batch.image_sizes)
    counters = () if config.norm == "batch" else ("num_batches_tracked",)
    return {k: v for k, v in model.state_dict().items() if not k.endswith(counters)}


def give_statistics(heads: RoIHeads, features: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]]) -> None:
    """Give the heads' BatchNorm the statistics of random boxes, and the classifier logits that vary among these."""
    corner = torch.rand(len(sizes), 64, 2) * torch.tensor(sizes[0][::-1]) * 0.6
    boxes = list(torch.cat((corner, corner + 8 + torch.rand_like(corner) * min(sizes[0]) * 0.4), dim=2))
    heads.mask_head(heads.mask_roi_pool(features, boxes, sizes))
    logits, _ = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, boxes, sizes)))
    heads.box_predictor.cls_score.weight.mul_(LOGIT_STD / logits.std())


PROPOSALS = tuple(f"rpn_{when}_nms_top_n_{mode}" for when in ("pre", "post") for mode in ("train", "test"))
RPN_STD, CLASS_STD, BACKGROUND_BIAS, MASK_STD, LOGIT_STD = 0.1, 0.1, 7.0, 0.03, 5.0
