"""--agnostic-nms against brute force: of detections that overlap, whatever their classes, the best one stays."""

from pathlib import Path

import pytest
import torch
from torchvision.ops import box_iou

from network_files import suppression
from network_files.test_time_augmentation import with_tta
from tests.helpers.faults import thin_model
from tests.helpers.published_weights import evaluation_args
from tests.helpers.thin_weights import thin_networks, write_thin_weights
from train_utils.models import ModelConfig, load_trained_model


def greedy(found: dict[str, torch.Tensor], most: int) -> list[int]:
    """Indices of the detections that no better kept one overlaps; `found` is sorted by score."""
    overlap, kept = box_iou(found["boxes"], found["boxes"]) > 0.5, list[int]()
    for i in range(len(overlap)):
        if not overlap[i, kept].any() and len(kept) < most:
            kept.append(i)
    return kept


@pytest.mark.parametrize("at_once", [False, True], ids=["as on the CPU", "as on a GPU"])
def test_the_best_of_all_classes_stays(monkeypatch, at_once):
    if at_once:
        monkeypatch.setattr("network_files.roi_heads.nms_of_images", suppression.nms_at_once)
    heads = thin_model(ModelConfig(5)).roi_heads
    proposals = [torch.rand(40, 2) * 40 for _ in range(2)]
    proposals = [torch.cat((p, p + 10 + torch.rand(40, 2) * 30), dim=1) for p in proposals]
    given = torch.randn(80, 5) * 2, torch.randn(80, 5, 4), proposals, [(64, 80), (72, 64)]
    heads.detections_per_img, heads.nms_thresh = 1000, 1.0
    everything = heads.select_detections(*given)
    heads.agnostic_nms, heads.detections_per_img, heads.nms_thresh = True, 12, 0.5
    agnostic = heads.select_detections(*given)
    heads.agnostic_nms, heads.detections_per_img = False, 1000
    for found, candidates in zip(heads.select_detections(*given), everything):  # off: each class by itself
        for label in candidates["labels"].unique():
            chosen, of_class = found["labels"] == label, candidates["labels"] == label
            candidates_of_class = {key: candidates[key][of_class] for key in ("boxes", "labels", "scores")}
            kept = greedy(candidates_of_class, most=1000)
            assert torch.equal(found["boxes"][chosen], candidates_of_class["boxes"][kept])
    for found, candidates in zip(agnostic, everything):
        kept = greedy(candidates, most=12)
        assert len(kept) == 12 and len(set(candidates["labels"][kept].tolist())) > 1
        assert all(torch.equal(found[key], candidates[key][kept]) for key in ("boxes", "labels", "scores"))


@torch.no_grad()
def test_weights_carry_it_options_override_it_and_test_time_augmentation_does_it_too(tmp_path: Path):
    image, sizes = [torch.rand(3, 60, 80)], {"min_size": 64, "max_size": 96}
    with thin_networks():
        path = write_thin_weights(tmp_path / "thin.pth")
        plain, config, _ = load_trained_model(path, evaluation_args(**sizes))
        agnostic, agnostic_config, _ = load_trained_model(path, evaluation_args(agnostic_nms=True, **sizes))
        content = torch.load(path) | {"model_config": agnostic_config.to_plain()}
        torch.save(content, path)
        again, _, _ = load_trained_model(path, evaluation_args(**sizes))
        off, _, _ = load_trained_model(path, evaluation_args(agnostic_nms=False, **sizes))
    assert (config.agnostic_nms, agnostic_config.agnostic_nms) == (False, True)
    assert again.roi_heads.agnostic_nms and not off.roi_heads.agnostic_nms
    for one, other in ((plain, agnostic), (with_tta(plain), with_tta(agnostic))):
        (by_class,), (found,) = one.detect(image), other.detect(image)
        assert len(found["labels"]) < len(by_class["labels"])
        assert (box_iou(found["boxes"], found["boxes"]) > 0.501).sum() == len(found["labels"])
