"""The examples of CONTRIBUTING.md run (an augmentation, another backbone), and the files that it names exist."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from network_files import InstanceMasks, MaskRCNN
from tests.helpers.broken_data import make_coco
from tests.helpers.commands import run, succeeded
from tests.helpers.fenced_blocks import python_blocks
from tests.helpers.project import ROOT
from train_utils import models

PAGE = ROOT / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def examples() -> dict[str, Any]:
    """The names that the page's blocks define, run one after the other as one program."""
    namespace: dict[str, Any] = {"__name__": "examples"}
    exec("\n".join(python_blocks(PAGE)), namespace)
    return namespace


def test_the_augmentation_changes_colours_and_draws_from_torchs_generator(examples: dict[str, Any]) -> None:
    image, target = torch.full((3, 4, 5), 200, dtype=torch.uint8), {"boxes": torch.zeros(0, 4)}
    augment = examples["RandomBrightness"](0.5)
    found = []
    for seed in range(20):
        torch.manual_seed(seed)
        changed, same = augment(image, target)
        torch.manual_seed(seed)
        assert torch.equal(augment(image, target)[0], changed)
        assert changed.dtype == torch.uint8 and changed.shape == image.shape and same is target
        found.append(changed.unique().tolist())
    assert all(len(values) == 1 and 100 <= values[0] <= 255 for values in found) and len(set(map(tuple, found))) > 10


def test_the_model_on_another_backbone_learns_and_detects(examples: dict[str, Any]) -> None:
    model: MaskRCNN = examples["model"]
    model.transform.min_size, model.transform.max_size = (64,), 96
    model.rpn.post_nms_top_n = {"training": 50, "testing": 20}  # for speed
    images = [torch.rand(3, 48, 64), torch.rand(3, 64, 64)]
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, 8:40, 8:48] = True
    box = torch.tensor([[8.0, 8.0, 48.0, 40.0]])
    targets = [
        {"boxes": box, "labels": torch.tensor([1 + i]), "masks": InstanceMasks.from_dense(masks[:, : image.shape[1]])}
        for i, image in enumerate(images)
    ]
    losses = model.train()(images, targets)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values()) and len(losses) == 5
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    with torch.inference_mode():
        detections = model.eval()(images)
    assert all(d["masks"].shape[1:] == (1, *image.shape[1:]) for d, image in zip(detections, images))
    assert all(len(d["boxes"]) == len(d["labels"]) == len(d["scores"]) > 0 for d in detections)


@pytest.mark.slow
def test_train_py_runs_on_another_backbone(examples: dict[str, Any], tmp_path: Path, monkeypatch) -> None:
    make_coco(tmp_path / "data")
    monkeypatch.setattr(models, "resnet50_fpn_backbone", lambda **_: examples["SmallBackbone"]())
    small = ["--device", "cpu", "--min-size", "64", "--max-size", "64", "--rois-per-image", "8", "--proposals", "20"]
    small += ["--workers", "0", "--pretrain", "False", "--max-steps", "1", "--data-path", "data"]
    succeeded(run(tmp_path, "train.py", *small))
    succeeded(run(tmp_path, "validation.py", "--device", "cpu", "--workers", "0"))
    weights = torch.load(tmp_path / "save_weights" / "model_0.pth", weights_only=True)["model"]
    assert weights["backbone.stages.0.0.weight"].shape == (32, 3, 3, 3)


def test_the_files_that_the_page_names_exist() -> None:
    names = set(re.findall(r"`([\w/]+(?:\.py|\.md|/))`", PAGE.read_text(encoding="utf-8")))
    rooms = ("", "train_utils/", "dataset_files/", "dataset_files/layouts/", "network_files/")
    assert len(names) > 15
    assert [name for name in sorted(names) if not any((ROOT / room / name).exists() for room in rooms)] == []


def test_the_functions_that_the_journeys_name_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, file in {
        "training_transforms": "train_utils/augmentation.py",
        "ScaleJitter": "transforms.py",
        "build_model": "train_utils/models.py",
        "predict_masks": "network_files/roi_heads.py",
        "mask_rcnn_loss": "network_files/roi_heads.py",
        "CocoBuilder": "dataset_files/layouts/coco_builder.py",
    }.items():
        assert f"`{name}`" in text
        assert re.search(rf"(def|class) {name}\b", (ROOT / file).read_text(encoding="utf-8"))
