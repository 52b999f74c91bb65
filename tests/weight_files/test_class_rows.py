"""Weights with other classes than the data's keep what they know: the rows of a class follow its name."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tests.helpers.faults import thin_model
from tests.helpers.published_weights import evaluation_args
from tests.helpers.thin_weights import CONFIG, NAMES, noise_image, thin_networks, write_thin_weights
from train_utils.classes import COCO_NAMES, ClassTable
from train_utils.models import ModelConfig, build_training_model, load_trained_model
from train_utils.options import TrainSettings
from train_utils.weight_files.class_rows import CLASS_LOGITS, SILENT
from train_utils.weight_files.weights import CLASS_LAYERS

SIZES = ("--min-size", "64", "--max-size", "96", "--device", "cpu", "--data-path", "mine")
MORE = {1: "Water_melon", 2: "fig", 3: "apple", 4: "pear"}


@pytest.fixture(autouse=True)
def _thin() -> Iterator[None]:
    with thin_networks():
        yield


def started(path: Path, names: dict[int, str]):
    args = TrainSettings.parse("", ["--pretrain", str(path), *SIZES])
    args.resolve(1)
    return build_training_model(args, max(names) + 1, None, names)[0]


@torch.no_grad()
def test_before_the_first_step_the_old_classes_are_detected_as_before(tmp_path: Path, capsys):
    path = write_thin_weights(tmp_path / "three.pth")
    old, _, _ = load_trained_model(path, evaluation_args(min_size=64, max_size=96))
    new = started(path, MORE).eval()
    assert (
        f"{path}: the rows of 3 of 4 classes are kept, by name: Water_melon, apple, pear; newly initialised: fig"
        in (capsys.readouterr().out)
    )
    label_now = torch.tensor([0, 3, 4, 1])
    for seed in range(3):
        image = [torch.from_numpy(np.array(noise_image(seed))).permute(2, 0, 1)]
        (before,), (after,) = old(image), new(image)
        assert len(before["labels"]) > 20
        assert torch.equal(label_now[before["labels"]], after["labels"])
        for key in ("boxes", "scores", "masks"):
            assert_close(after[key], before[key], atol=1e-4, rtol=1e-4)


def test_a_new_class_is_silent_and_can_be_learnt(tmp_path: Path):
    model = started(write_thin_weights(tmp_path / "three.pth"), MORE)
    logits = model.roi_heads.box_predictor.cls_score
    features = torch.rand(64, 32)
    found = logits(features)
    others = found[:, [0, 1, 3, 4]]
    assert_close(found[:, 2], others.mean(dim=1) + SILENT, atol=0.5, rtol=0)
    assert found.softmax(dim=1)[:, 2].max() < 1e-4
    torch.nn.functional.cross_entropy(found, torch.full((64,), 2)).backward()
    assert (logits.weight.grad[2] < -0.4).all()


def test_the_same_classes_keep_every_bit_and_others_none(tmp_path: Path, capsys):
    path = write_thin_weights(tmp_path / "three.pth")
    stored = torch.load(path)["model"]
    assert all(torch.equal(value, stored[key]) for key, value in started(path, NAMES).state_dict().items())
    torch.manual_seed(7)
    fresh = thin_model(CONFIG).state_dict()
    torch.manual_seed(7)
    other = started(path, {1: "cup", 2: "mug", 3: "jar"}).state_dict()
    assert "has other classes or anchors; newly initialised layers: " in capsys.readouterr().out
    for key, value in other.items():
        assert torch.equal(value, fresh[key] if key.startswith(CLASS_LAYERS) else stored[key])


def test_published_weights_know_cocos_names_and_its_gaps_stay(tmp_path: Path):
    coco = thin_model(ModelConfig(91)).state_dict()
    for key in coco:
        if key.startswith(CLASS_LAYERS):
            torch.nn.init.normal_(coco[key])
    torch.save(coco, tmp_path / "published.pth")
    own = started(tmp_path / "published.pth", {1: "robot", 3: "dog", 4: "person"}).state_dict()
    for key in (key for key in coco if key.startswith(CLASS_LAYERS)):
        theirs, rows = coco[key].unflatten(0, (91, -1)), own[key].unflatten(0, (5, -1))
        assert torch.equal(rows[[0, 3, 4]], theirs[[0, 18, 1]])
    bias = f"{CLASS_LOGITS}.bias"
    assert_close(own[bias][[1, 2]], (coco[bias][[0, 18, 1]].mean() + SILENT).expand(2))
    everything = started(tmp_path / "published.pth", ClassTable.of_json(COCO_NAMES).names).state_dict()
    assert all(torch.equal(value, coco[key]) for key, value in everything.items())
