"""Rename the keys of older state dicts to torchvision's current names, which this network uses."""

import re
from collections.abc import Callable
from typing import Any

# torchvision's published maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth predates the nested convolution blocks.
OLD_KEYS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2"),
    (r"^(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2"),
    (r"^(roi_heads\.mask_head)\.mask_fcn(\d+)\.", lambda old: f"{old[1]}.{int(old[2]) - 1}.0."),
)


def rename_old_keys(state_dict: dict[str, Any]) -> None:
    """Rename keys of torchvision's older style in place; other keys stay."""
    for key in list(state_dict):
        for pattern, replacement in OLD_KEYS:
            if (new_key := re.sub(pattern, replacement, key)) != key:
                state_dict[new_key] = state_dict.pop(key)
