"""A thin network whose weights are set by hand so that it finds squares with a white dot, and an image of 240 of them.

The dots reach the finest pyramid level through the first convolution and the shortcut of the first block. There the
RPN's square anchor of 32 pixels fires, and the box head where the dot is in the middle of the box. Nothing is trained.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from network_files import MaskRCNN
from tests.helpers.faults import thin_model
from train_utils.models import ModelConfig

ROWS, COLUMNS, PITCH, SIDE = 12, 20, 40, 32
HEIGHT, WIDTH = ROWS * PITCH, COLUMNS * PITCH  # anchors' centres are multiples of 4 pixels, as the squares' are
SQUARES = ROWS * COLUMNS
NAME = "square"


def corners() -> list[tuple[int, int]]:
    """Left and top of each square."""
    first = (PITCH - SIDE) // 2
    return [(first + PITCH * column, first + PITCH * row) for row in range(ROWS) for column in range(COLUMNS)]


def write_squares(root: Path, splits: tuple[str, ...] = ("train", "val")) -> None:
    """The image and its annotations in COCO's layout, the same for each split."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    annotations = []
    for number, (x, y) in enumerate(corners(), start=1):
        pixels[y : y + SIDE, x : x + SIDE] = (90, 60, 60)
        middle = SIDE // 2
        pixels[y + middle - 1 : y + middle + 2, x + middle - 1 : x + middle + 2] = 255
        polygon = [x, y, x + SIDE, y, x + SIDE, y + SIDE, x, y + SIDE]
        box = {"bbox": [x, y, SIDE, SIDE], "area": SIDE**2, "iscrowd": 0, "segmentation": [polygon]}
        annotations.append({"id": number, "image_id": 1, "category_id": 1, **box})
    image = {"id": 1, "file_name": "1.png", "height": HEIGHT, "width": WIDTH}
    content = {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": NAME}]}
    (root / "annotations").mkdir(parents=True)
    for split in splits:
        (root / f"{split}2017").mkdir()
        Image.fromarray(pixels).save(root / f"{split}2017" / "1.png")
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


def square_finder(config: ModelConfig) -> MaskRCNN:
    model = thin_model(config).eval()
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    for name in state:
        if name.endswith(("bn1.weight", "downsample.1.weight", "running_var")):
            state[name].fill_(1.0)
    state["backbone.body.conv1.weight"][0, 0, 3, 3] = 1  # red, of every second pixel
    state["backbone.body.layer1.0.downsample.0.weight"][0, 0] = 1
    state["backbone.fpn.inner_blocks.0.0.weight"][0, 0] = 1
    state["backbone.fpn.layer_blocks.0.0.weight"][0, 0, 1, 1] = 1
    state["rpn.head.conv.0.0.weight"][0, 0, 1, 1] = 1
    state["rpn.head.cls_logits.weight"][1, 0] = 10  # the anchor of aspect ratio 1
    state["rpn.head.cls_logits.bias"][:] = -5
    state["roi_heads.box_head.fc6.weight"][0, 3 * 7 + 3] = 1  # the middle of the box
    state["roi_heads.box_head.fc7.weight"][0, 0] = 1
    white = (1 - 0.485) / 0.229
    state["roi_heads.box_predictor.cls_score.weight"][1, 0] = 20
    state["roi_heads.box_predictor.cls_score.bias"][1] = -20 * 0.3 * white
    state["roi_heads.mask_predictor.mask_fcn_logits.bias"][:] = 5
    model.load_state_dict(state)
    return model


def write_square_finder(path: Path, data: Path) -> None:
    """The network as a checkpoint of a run on the data; `thin_networks` reads it."""
    config = ModelConfig(num_classes=2, norm="frozen", min_size=HEIGHT, max_size=WIDTH, proposals=1000)
    content = {"model": square_finder(config).state_dict(), "model_config": config.to_plain()}
    classes = {"class_names": {1: NAME}, "category_ids": {1: 1}}
    torch.save(content | classes | {"args": {"data_path": str(data)}}, path)
