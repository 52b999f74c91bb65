"""A weight file of a thin network that finds a hundred things of three classes in any image, in milliseconds."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.faults import thin_model
from train_utils import models
from train_utils.models import ModelConfig

NAMES = {1: "apple", 2: "pear", 3: "water melon"}
CATEGORY_IDS = {1: 11, 2: 12, 3: 15}
CONFIG = ModelConfig(num_classes=4, min_size=64, max_size=96)


@contextmanager
def thin_networks() -> Iterator[None]:
    """Context in which all networks are built thin."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "build_model", thin_model)
        yield


def write_thin_weights(path: Path, names: Mapping[int, str] = NAMES) -> Path:
    """Write random weights whose scores and masks vary with the image; to be called within `thin_networks`."""
    torch.manual_seed(3)
    model = thin_model(CONFIG)
    heads = model.roi_heads
    torch.nn.init.normal_(heads.box_predictor.cls_score.weight, std=1.0)
    torch.nn.init.normal_(heads.box_predictor.bbox_pred.weight, std=0.1)
    torch.nn.init.normal_(heads.mask_predictor.mask_fcn_logits.weight, std=1.0)
    torch.nn.init.constant_(heads.mask_predictor.mask_fcn_logits.bias, 0.5)
    content = {"model": model.state_dict(), "model_config": CONFIG.to_plain(), "args": {}}
    torch.save(content | {"class_names": dict(names), "category_ids": CATEGORY_IDS}, path)
    return path


def noise_image(seed: int, size: tuple[int, int] = (80, 60)) -> Image.Image:
    """An RGB image (width, height) of blurred noise, different for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
