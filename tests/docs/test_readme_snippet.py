"""The Python examples of the READMEs and pages run as they stand, on weights and a photo that the test makes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from network_files import InstanceMasks
from tests.helpers.drawn_masks import HEIGHT, WIDTH, blobs
from tests.helpers.faults import thin_model
from tests.helpers.fenced_blocks import python_blocks
from tests.helpers.project import ROOT
from tests.helpers.thin_weights import thin_networks
from train_utils.models import ModelConfig

READMES = ("README.md", "README.zh-CN.md")
NAMES = {1: "apple", 2: "pear"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with the two files that the example reads."""
    folder = tmp_path_factory.mktemp("snippet")
    config = ModelConfig(num_classes=3, min_size=64, max_size=96)
    model = thin_model(config)
    torch.nn.init.constant_(model.roi_heads.box_predictor.cls_score.bias[1:2], 3.0)  # sees apples everywhere
    content = {"model": model.state_dict(), "model_config": config.to_plain(), "class_names": NAMES}
    (folder / "save_weights").mkdir()
    torch.save(content | {"args": {}}, folder / "save_weights" / "model_25.pth")
    Image.effect_noise((80, 60), 90).convert("RGB").save(folder / "photo.jpg")
    with thin_networks():
        yield folder


@pytest.mark.slow
def test_the_example_prints_a_line_per_detection(folder: Path, monkeypatch, capsys) -> None:
    (block,) = [block for block in python_blocks(ROOT / READMES[0]) if "photo.jpg" in block]
    monkeypatch.chdir(folder)
    exec(block, {"__name__": "snippet"})
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(line.split()[0] in NAMES.values() and line.endswith("pixels") for line in lines)
    with Image.open("drawn.png") as drawn:
        assert drawn.size == (640, 480)


@pytest.mark.parametrize("page", ["docs/TRAINING.md", "docs/GUIDE.zh-CN.md"])
def test_albumentations_plug_into_the_transforms(page: str) -> None:
    albumentations = pytest.importorskip("albumentations", reason="only with the package albumentations")
    (block,) = [block for block in python_blocks(ROOT / page) if "Albumentations" in block]
    names: dict[str, Any] = {"__name__": "snippet"}
    exec(block, names)
    parts = [albumentations.HorizontalFlip(p=1), albumentations.Rotate((-40, 40), p=1)]
    flip, both = (names["Albumentations"](albumentations.Compose(chosen)) for chosen in (parts[:1], parts))
    dense = blobs(6)
    dense[:5, 3:9, 4:8], dense[5] = 1, 0
    image, masks = torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8), InstanceMasks.from_dense(dense)
    target = {"boxes": masks.extents(), "labels": torch.arange(6), "masks": masks, "image_id": 3}

    mirrored, found = flip(image, target)
    assert torch.equal(mirrored, image.flip(-1)) and found["labels"].tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(found["masks"].dense(), dense[:5].flip(-1)) and found["image_id"] == 3
    turned = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        turned.append(both(image, target)[0])
    assert turned[0].shape == image.shape and torch.equal(turned[0], turned[2])
    assert not torch.equal(turned[0], turned[1])


def test_both_readmes_hold_the_same_examples() -> None:
    one, other = (python_blocks(ROOT / readme) for readme in READMES)
    assert [without_comments(block) for block in one] == [without_comments(block) for block in other] != []


def without_comments(block: str) -> list[str]:
    return [line.partition("  #")[0].rstrip() for line in block.splitlines()]
