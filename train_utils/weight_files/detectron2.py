"""Convert the weights of a Detectron2 Mask R-CNN (ResNet-50, FPN) to a weight file of this project.

The weights keep their values with two exceptions: the rows of each class move to this project's label, and the first
convolution takes red, green, blue of unit variance instead of blue, green, red in 0..255. `arch: detectron2` in the
network's description covers the differences that cannot be folded into weights, see `ModelConfig`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from network_files.anchors import AnchorGenerator
from network_files.mask_rcnn import IMAGENET_STD
from train_utils.classes import COCO_NAMES, ClassTable
from train_utils.errors import InputError

# Detectron2's names -> ours. Its mask_fcn1..4, also torchvision's older names, have been renamed already.
RENAMES = (
    (r"^backbone\.bottom_up\.stem\.", "backbone.body."),
    (r"^backbone\.bottom_up\.res(\d)\.", lambda m: f"backbone.body.layer{int(m[1]) - 1}."),
    (r"(?<=\.)conv(\d)\.norm\.", r"bn\1."),
    (r"(?<=\.)shortcut\.norm\.", "downsample.1."),
    (r"(?<=\.)shortcut\.", "downsample.0."),
    (r"^backbone\.fpn_lateral(\d)\.", lambda m: f"backbone.fpn.inner_blocks.{int(m[1]) - 2}.0."),
    (r"^backbone\.fpn_output(\d)\.", lambda m: f"backbone.fpn.layer_blocks.{int(m[1]) - 2}.0."),
    (r"^proposal_generator\.rpn_head\.conv\.", "rpn.head.conv.0.0."),
    (r"^proposal_generator\.rpn_head\.objectness_logits\.", "rpn.head.cls_logits."),
    (r"^proposal_generator\.rpn_head\.anchor_deltas\.", "rpn.head.bbox_pred."),
    (r"^roi_heads\.box_head\.fc1\.", "roi_heads.box_head.fc6."),
    (r"^roi_heads\.box_head\.fc2\.", "roi_heads.box_head.fc7."),
    (r"^roi_heads\.mask_head\.deconv\.", "roi_heads.mask_predictor.conv5_mask."),
    (r"^roi_heads\.mask_head\.predictor\.", "roi_heads.mask_predictor.mask_fcn_logits."),
)
STEM = "backbone.body.conv1.weight"
CLASS_LOGITS = "roi_heads.box_predictor.cls_score"
BOX_DELTAS = "roi_heads.box_predictor.bbox_pred"
MASK_LOGITS = "roi_heads.mask_predictor.mask_fcn_logits"
CLASS_KEYS = [f"{layer}.{kind}" for layer in (CLASS_LOGITS, BOX_DELTAS, MASK_LOGITS) for kind in ("weight", "bias")]

ANCHORS_KEY = "proposal_generator.anchor_generator.cell_anchors."  # in files of Detectron2 before 2021
PIXEL_MEAN = [103.53, 116.28, 123.675]  # blue, green, red: 255 times this network's
IMPOSSIBLE = -1e4  # logit of a label without a class: its probability is 0 in any precision


def is_detectron2(state: Mapping[str, Any]) -> bool:
    """Whether the keys of a state dict are those of a Detectron2 detector."""
    keys = (str(key).removeprefix("module.") for key in state)
    return any(key.startswith(("backbone.bottom_up.", "proposal_generator.")) for key in keys)


def from_detectron2(state: Mapping[str, Tensor], path: str | Path, label_json: str | None = None) -> dict[str, Any]:
    """Convert a state dict to the content of a weight file. InputError if it is no Mask R-CNN (ResNet-50, FPN)."""
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    for pattern, replacement in RENAMES:
        state = {re.sub(pattern, replacement, key): value for key, value in state.items()}
    missing = [key for key in (STEM, *CLASS_KEYS) if key not in state or state[key].ndim == 0]
    if missing or state[STEM].shape[1:] != (3, 7, 7) or len(state[f"{CLASS_LOGITS}.bias"]) < 2:
        what = f"{', '.join(missing)} missing" if missing else "unsupported shape of the stem or the class layers"
        raise InputError(f"{path}: a Detectron2 network, but not a Mask R-CNN with ResNet-50 and FPN: {what}")
    for level, own in enumerate(AnchorGenerator(rounded=False).cell_anchors):
        found = state.pop(f"{ANCHORS_KEY}{level}", own)
        if found.shape != own.shape or not torch.allclose(found.float(), own, atol=1e-2):
            raise InputError(
                f"{path}: its anchors on level {level} are {found.tolist()}; only {own.tolist()} are supported"
            )
    fold_input_format(state, path)
    labels, table = labels_of(len(state[f"{CLASS_LOGITS}.bias"]) - 1, path, label_json)
    move_class_rows(state, labels, path)
    batch_norm = any(key.endswith("num_batches_tracked") for key in state)
    config = {"num_classes": max(labels) + 1, "arch": "detectron2", "norm": "batch" if batch_norm else "frozen"}
    content = {"model": state, "model_config": config}
    return content if table is None else content | {"class_names": table.names}


def fold_input_format(state: dict[str, Tensor], path: str | Path) -> None:
    """Make the first convolution in `state` take RGB of unit variance, as in this network, instead of BGR in 0..255."""
    mean = state.pop("pixel_mean", torch.tensor(PIXEL_MEAN)).flatten().tolist()
    std = state.pop("pixel_std", torch.ones(3)).flatten().tolist()
    if [round(value, 1) for value in mean] != [round(value, 1) for value in PIXEL_MEAN] or len(std) != 3:
        raise InputError(f"{path}: its pixel_mean is {mean}; only {PIXEL_MEAN} (blue, green, red) is supported")
    scale = 255 * torch.tensor(IMAGENET_STD) / torch.tensor(std).flip(0)
    state[STEM] = state[STEM].flip(1) * scale[:, None, None]  # the means agree, so zero padding stays correct


def labels_of(classes: int, path: str | Path, label_json: str | None) -> tuple[list[int], ClassTable | None]:
    """Return the labels of a number of classes, and their table of names, or None if it is unknown.

    The table is the JSON file's if that has as many classes, or COCO's for 80. Without one, labels are 1, 2, ....
    """
    table = ClassTable.of_json(label_json) if label_json is not None else None
    if table is None or len(table.names) != classes:
        coco = ClassTable.of_json(COCO_NAMES)
        table = coco if classes == len(coco.names) else None
    if table is None:
        return list(range(1, classes + 1)), None
    labels = sorted(table.names)
    if labels[0] < 1 or labels[-1] > 2 * classes:
        raise InputError(
            f"{label_json}: has labels from {labels[0]} to {labels[-1]}; number the {classes} classes of {path} from 1"
        )
    return labels, table


def move_class_rows(state: dict[str, Tensor], labels: list[int], path: str | Path) -> None:
    """Move the class layers' rows in place: each class's rows to its label, and the background's from last to first."""
    for layer, rows_per_class, background in ((CLASS_LOGITS, 1, [0]), (BOX_DELTAS, 4, []), (MASK_LOGITS, 1, [])):
        places = background + labels
        for key in (f"{layer}.weight", f"{layer}.bias"):
            rows = state[key]
            if len(rows) != rows_per_class * len(places):
                raise InputError(
                    f"{path}: {key} has {len(rows)} rows for {len(labels)} classes instead of "
                    f"{rows_per_class * len(places)}; class-agnostic boxes and masks are unsupported"
                )
            fill = IMPOSSIBLE if key == f"{CLASS_LOGITS}.bias" else 0.0
            moved = rows.new_full((max(labels) + 1, rows_per_class, *rows.shape[1:]), fill)
            moved[places] = rows.roll(len(background), 0).unflatten(0, (len(places), rows_per_class))
            state[key] = moved.flatten(0, 1)
