"""The Python example of both READMEs runs as it stands, on weights and a photo that the test makes."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers.fenced_blocks import python_blocks
from tests.helpers.project import ROOT
from train_utils.models import ModelConfig, build_model

READMES = ("README.md", "README.zh-CN.md")
NAMES = {1: "apple", 2: "pear"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the two files that the example reads."""
    folder = tmp_path_factory.mktemp("snippet")
    config = ModelConfig(num_classes=3, min_size=64, max_size=96)
    model = build_model(config)
    torch.nn.init.constant_(model.roi_heads.box_predictor.cls_score.bias[1:2], 3.0)  # sees apples everywhere
    content = {"model": model.state_dict(), "model_config": config.to_plain(), "class_names": NAMES}
    (folder / "save_weights").mkdir()
    torch.save(content | {"args": {}}, folder / "save_weights" / "model_25.pth")
    Image.effect_noise((80, 60), 90).convert("RGB").save(folder / "photo.jpg")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("readme", READMES)
def test_the_example_prints_a_line_per_detection(readme: str, folder: Path, monkeypatch, capsys) -> None:
    (block,) = python_blocks(ROOT / readme)
    monkeypatch.chdir(folder)
    exec(block, {"__name__": "snippet"})
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(line.split()[0] in NAMES.values() and line.endswith("pixels") for line in lines)
    with Image.open("drawn.png") as drawn:
        assert drawn.size == (640, 480)


def test_both_readmes_hold_the_same_example() -> None:
    one, other = (python_blocks(ROOT / readme) for readme in READMES)
    assert [without_comments(block) for block in one] == [without_comments(block) for block in other] != []


def without_comments(block: str) -> list[str]:
    return [line.partition("  #")[0].rstrip() for line in block.splitlines()]
