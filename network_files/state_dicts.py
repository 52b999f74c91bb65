"""Rename the keys of older state dicts to torchvision's current names, which this network uses."""

import re
from typing import Any

# torchvision's published maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth predates the nested convolution blocks.
OLD_KEYS = (
    (re.compile(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"^(rpn\.head\.conv)\.(weight|bias)$"), r"\1.0.0.\2"),
)
OLD_MASK_HEAD_KEY = re.compile(r"^(roi_heads\.mask_head)\.mask_fcn(\d+)\.(weight|bias)$")


def rename_old_keys(state_dict: dict[str, Any]) -> None:
    """Rename keys of torchvision's older style in place; other keys stay."""
    for key in list(state_dict):
        new_key = current_key(key)
        if new_key != key:
            state_dict[new_key] = state_dict.pop(key)


def current_key(key: str) -> str:
    mask_head = OLD_MASK_HEAD_KEY.match(key)
    if mask_head:
        prefix, number, kind = mask_head.groups()
        return f"{prefix}.{int(number) - 1}.0.{kind}"
    for pattern, replacement in OLD_KEYS:
        key = pattern.sub(replacement, key)
    return key
