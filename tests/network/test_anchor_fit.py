"""Which objects no anchor fits, against all anchors of the image; and anchors of the user's own, in every file."""

import json
from pathlib import Path

import pytest
import torch
from torchvision.ops import box_iou

from my_dataset_coco import CocoDetection
from network_files.anchors import AnchorGenerator, best_anchor_ious
from tests.helpers.parity import synthetic_batch
from tests.helpers.published_weights import evaluation_args
from tests.helpers.thin_weights import thin_networks, write_thin_weights
from train_utils.demo_dataset import make_demo_dataset
from train_utils.errors import InputError
from train_utils.models import ModelConfig, anchors_of, build_training_model, load_trained_model
from train_utils.options import TrainSettings
from train_utils.sampled_images import anchor_fit

OWN = AnchorGenerator([(8,), (20,), (45,), (90,), (300,)], [(0.3, 1.0, 1.4)] * 5)


def all_anchors(size: tuple[int, int], generator: AnchorGenerator) -> torch.Tensor:
    height, width = (-(-length // 32) * 32 for length in size)
    sides = [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32, 64)]
    return torch.cat(generator((height, width), [torch.zeros(1, 1, *side) for side in sides]))


@pytest.mark.parametrize("size", [(160, 96), (97, 301), (33, 40)])
@pytest.mark.parametrize("generator", [AnchorGenerator(), AnchorGenerator(rounded=False), OWN])
def test_the_best_of_the_nearest_anchors_is_the_best_of_all(size, generator):
    corners = torch.rand(300, 2) * torch.tensor(size[::-1])
    boxes = torch.cat((corners, corners + torch.rand(300, 2) ** 3 * 300 + 1), dim=1)
    best = box_iou(boxes, all_anchors(size, generator)).amax(dim=1)
    torch.testing.assert_close(best_anchor_ious(boxes, size, generator), best)
    assert 0.1 < (best < 0.5).float().mean() < 0.99


def test_the_line_counts_objects_without_an_anchor_and_says_how_small_they_are(tmp_path: Path):
    make_demo_dataset(tmp_path, num_train=6, num_val=1)
    dataset = CocoDetection(tmp_path, "train")
    ious, sides = [], []
    for i in range(len(dataset)):
        height, width = dataset.get_height_and_width(i)
        scale = 70 / min(height, width)
        boxes = dataset.target(i)["boxes"] * scale
        ious += box_iou(boxes, all_anchors((int(height * scale), int(width * scale)), OWN)).amax(dim=1).tolist()
        sides += ((boxes[:, 2:] - boxes[:, :2]).prod(dim=1) ** 0.5).tolist()
    missed = sum(iou < 0.5 for iou in ious)
    assert 0 < missed < len(ious)
    line = anchor_fit(dataset, OWN, 70, 1000)
    middle = torch.tensor(sides).quantile(0.5).item()
    assert f"at --min-size 70, {missed} of {len(ious)} objects (" in line and line.endswith(
        f"{middle:.0f} x {middle:.0f}"
    )


def test_anchors_are_carried_in_the_checkpoint_and_kept_when_training_goes_on_from_it(tmp_path: Path, capsys):
    sizes, ratios = [8, 16, 40, 80, 160], [0.5, 1.0, 2.0, 5.0]
    words = ["--anchor-sizes", *map(str, sizes), "--anchor-ratios", *map(str, ratios)]
    common = ["--min-size", "64", "--max-size", "96", "--data-path", "mine"]

    def started(*words: str):
        args = TrainSettings.parse("", [*common, *words])
        args.resolve(1)
        return build_training_model(args, 4, None)

    with thin_networks():
        path = write_thin_weights(tmp_path / "three.pth")
        model, config = started("--pretrain", str(path), *words)
        printed = capsys.readouterr().out
        assert "newly initialised layers: rpn.head.cls_logits.weight" in printed and "roi_heads" not in printed
        assert (config.anchor_sizes, config.anchor_ratios) == (sizes, ratios)
        torch.save({"model": model.state_dict(), "model_config": config.to_plain()}, tmp_path / "own.pth")
        loaded, _, _ = load_trained_model(tmp_path / "own.pth", evaluation_args(min_size=64, max_size=96))
        again, _ = started("--pretrain", str(tmp_path / "own.pth"))
        fewer, _ = started("--pretrain", str(path), "--anchor-sizes", *map(str, sizes))
    for network in (model, loaded, again):
        assert network.rpn.anchor_generator.sizes == tuple((size,) for size in sizes)
        assert network.rpn.anchor_generator.aspect_ratios == (tuple(ratios),) * 5
        assert torch.equal(network.rpn.head.cls_logits.weight, model.rpn.head.cls_logits.weight)
    stored = torch.load(path)["model"]
    assert torch.equal(fewer.rpn.head.cls_logits.weight, stored["rpn.head.cls_logits.weight"])
    json.dumps(config.to_plain())


def test_the_usual_anchors_given_by_options_change_no_bit(tmp_path: Path):
    words = ["--anchor-sizes", "32", "64", "128", "256", "512", "--anchor-ratios", "0.5", "1", "2"]
    (images, targets), results = synthetic_batch(), []
    with thin_networks():
        path = write_thin_weights(tmp_path / "thin.pth")
        for given in ([], words):
            args = TrainSettings.parse("", ["--min-size", "40", "--max-size", "56", "--rois-per-image", "8", *given])
            args.pretrain = str(path)
            model, _ = build_training_model(args, 4, None)
            torch.manual_seed(1)
            losses = model.train()(images, [t | {"labels": t["labels"] % 3 + 1} for t in targets])
            results.append([*model.state_dict().values(), *losses.values()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_detectron2s_weights_keep_their_anchors(tmp_path: Path):
    with thin_networks():
        path = write_thin_weights(tmp_path / "zoo.pth")
        content = torch.load(path)
        content["model_config"]["arch"] = "detectron2"
        torch.save(content, path)
        args = TrainSettings.parse("", ["--pretrain", str(path), "--anchor-ratios", "1", "--data-path", "mine"])
        with pytest.raises(InputError, match=r"zoo.pth: Detectron2's weights keep its anchors"):
            build_training_model(args, 4, None)


def test_without_the_options_the_anchors_are_torchvisions():
    for arch, rounded in (("v1", True), ("detectron2", False)):
        own, usual = anchors_of(ModelConfig(2, arch)), AnchorGenerator(rounded=rounded)
        assert own.rounded == rounded
        assert all(torch.equal(a, b) for a, b in zip(own.cell_anchors, usual.cell_anchors, strict=True))
