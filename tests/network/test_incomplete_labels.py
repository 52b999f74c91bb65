"""Ignore regions and objects without masks, against planes and loops; without them, nothing changes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from network_files import InstanceMasks, MaskRCNN, roi_heads
from network_files.ignore_regions import integral_image, share_inside
from network_files.image_transform import View
from network_files.masks import targets as mask_targets
from network_files.matching import Objects
from network_files.roi_heads import mask_rcnn_loss
from tests.helpers.drawn_masks import HEIGHT, WIDTH, blobs
from tests.helpers.faults import thin_model
from tests.helpers.parity import synthetic_batch
from train_utils.models import ModelConfig

FINE = 4  # boxes have corners at quarters of a pixel, so that sums over a plane of four times the size are exact


def quarter_boxes(count: int, size: tuple[int, int], reach: int = 20) -> Tensor:
    """Boxes of which some extend beyond the image."""
    limits = torch.tensor(size[::-1]) + 2 * reach
    corners = torch.rand(count, 2) * limits - reach
    boxes = torch.cat((corners, corners + 1 + torch.rand(count, 2) ** 2 * 60), dim=1)
    return (boxes * FINE).round() / FINE


def share_in_plane(plane: Tensor, boxes: Tensor) -> Tensor:
    """Count small pixels, box by box; plane: [H, W], nonzero in regions."""
    fine = (plane != 0).double().repeat_interleave(FINE, 0).repeat_interleave(FINE, 1)
    shares = []
    for x1, y1, x2, y2 in (boxes.double() * FINE).round().long().tolist():
        inside = fine[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)].sum()
        shares.append(inside / ((x2 - x1) * (y2 - y1)))
    return torch.stack(shares)


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (90, 71), (33, 160)])
def test_the_share_of_a_box_in_regions_equals_that_of_planes(size):
    regions = InstanceMasks.from_dense(blobs(4)).resize(*size, frame=(size[0] + 7, size[1] + 11))
    boxes = quarter_boxes(400, size)
    shares = share_inside(integral_image(regions, boxes.device), boxes)
    expected = share_in_plane(regions.dense().any(dim=0), boxes)
    torch.testing.assert_close(shares, expected, rtol=0, atol=1e-9)
    assert 0.05 < (expected >= 0.5).double().mean() < 0.95 and (expected == 1).any() and (expected == 0).any()


def with_regions(targets: list[dict]) -> list[dict]:
    """Regions in all but the last image; the first object of each image lies in one of them."""
    changed = []
    for target in targets[:-1]:
        height, width = target["masks"].shape[-2:]
        planes = torch.zeros(2, height, width, dtype=torch.uint8)
        planes[0, : height // 2, width // 5 :] = 1
        x1, y1, x2, y2 = target["boxes"][0].long().tolist()
        planes[1, y1:y2, x1:x2] = 1
        changed.append(target | {"ignore_regions": planes})
    return [*changed, targets[-1]]


@pytest.mark.parametrize("view", [None, View(70, 90, (96, 96))])
def test_background_in_regions_is_not_sampled_and_objects_there_are(view):
    torch.manual_seed(2)
    model = small_network()
    images, targets = synthetic_batch()
    if view:
        targets = [target | {"view": view} for target in targets]
    batch, without = model.transform(images, targets)
    _, changed = model.transform(images, with_regions(targets))
    plain, own = (Objects.of(each, torch.device("cpu")) for each in (without, changed))
    planes = [t["ignore_regions"].dense().any(dim=0) if "ignore_regions" in t else None for t in changed]
    assert planes[-1] is None

    def expected(labels: Tensor, candidates: Tensor, plane: Tensor | None) -> Tensor:
        if plane is None:
            return labels
        return torch.where((share_in_plane(plane, candidates) >= 0.5) & (labels == 0), -1, labels)

    levels = list(model.backbone(batch.tensors).values())
    anchors = torch.cat(model.rpn.anchor_generator(batch.tensors.shape[-2:], levels))
    usual, labels = (model.rpn.assign_targets(each, anchors).labels for each in (plain, own))
    for before, after, plane in zip(usual, labels, planes):
        assert torch.equal(after, expected(before, anchors, plane))
        assert torch.equal(before == 1, after == 1) and (plane is None) == torch.equal(before, after)

    proposals = [quarter_boxes(300, size).clamp(min=0) for size in batch.image_sizes]
    proposals = [torch.cat((p[:, :2], torch.maximum(p[:, 2:], p[:, :2] + 1)), dim=1) for p in proposals]
    model.roi_heads.sampler.batch_size_per_image, model.roi_heads.sampler.positive_fraction = 10_000, 1.0  # all of them
    usual, sample = (model.roi_heads.sample_proposals(proposals, each) for each in (plain, own))
    for i, plane in enumerate(planes):
        boxes, before, after = usual.all_boxes()[i], usual.labels[usual.image_ids == i], sample.all_boxes()[i]
        kept = expected(before, torch.cat((boxes[:300], boxes[300:].round())), plane) >= 0
        assert torch.equal(after, boxes[kept]) and torch.equal(sample.labels[sample.image_ids == i], before[kept])
        assert (before > 0).sum() == (sample.labels[sample.image_ids == i] > 0).sum() > 0


def small_network() -> MaskRCNN:
    model = thin_model(ModelConfig(91, min_size=40, max_size=56, rois_per_image=16)).train()
    model.rpn.pre_nms_top_n = model.rpn.post_nms_top_n = {"training": 60, "testing": 60}
    return model


def losses_and_gradients(model, images: list[Tensor], targets: list[dict]) -> tuple[dict[str, Tensor], list]:
    torch.manual_seed(7)
    model.zero_grad(set_to_none=True)
    losses = model(images, targets)
    sum(losses.values()).backward()
    return losses, [p.grad for p in model.parameters() if p.requires_grad]


def test_without_a_region_or_a_missing_mask_the_step_keeps_its_bits():
    model, (images, targets) = small_network(), synthetic_batch()
    regions = [t["masks"][:0] for t in targets]
    losses, gradients = losses_and_gradients(model, images, targets)
    again, same = losses_and_gradients(model, images, [t | {"ignore_regions": r} for t, r in zip(targets, regions)])
    assert all(torch.equal(losses[name], again[name]) for name in losses)
    assert all(torch.equal(a, b) for a, b in zip(gradients, same, strict=True))
    full = [t | {"has_mask": torch.ones(len(t["labels"]), dtype=torch.bool)} for t in targets]
    again, _ = losses_and_gradients(model, images, full)
    assert all(torch.equal(losses[name], again[name]) for name in losses if name != "loss_mask")
    torch.testing.assert_close(again["loss_mask"], losses["loss_mask"], rtol=1e-5, atol=0)


def test_an_image_that_a_region_fills_has_no_losses_and_defined_gradients():
    model = small_network()
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    target |= {"masks": torch.zeros(0, 96, 96, dtype=torch.uint8)}
    everything = torch.ones(1, 96, 96, dtype=torch.uint8)
    model.rpn.anchor_generator.sizes = ((8,), (8,), (8,), (8,), (8,))
    losses, gradients = losses_and_gradients(model, [torch.rand(3, 96, 96)], [target | {"ignore_regions": everything}])
    assert all(loss.isfinite() for loss in losses.values()) and all(g is not None for g in gradients)


@pytest.mark.parametrize("on_device", [False, True])
def test_the_mask_loss_is_the_mean_over_those_with_a_mask(monkeypatch, on_device):
    if on_device:
        monkeypatch.setattr(mask_targets, "mask_targets", mask_targets.targets_on_device)
        monkeypatch.setattr(roi_heads, "mask_targets", mask_targets.targets_on_device)
    planes, has_mask = blobs(6), torch.tensor([True, False, True, True, False, False])
    masks = InstanceMasks.from_dense(planes * has_mask[:, None, None])
    boxes, matched = quarter_boxes(40, (HEIGHT, WIDTH)).clamp(min=0), torch.randint(0, 6, (40,))
    boxes[:, 2:] += 1
    logits = torch.randn(40, 28, 28, requires_grad=True)
    loss = mask_rcnn_loss(logits, [boxes], [matched], [masks], counted=has_mask[matched])
    (gradient,) = torch.autograd.grad(loss, logits)
    rows = [r for r in range(40) if has_mask[matched[r]]]
    all_targets = mask_targets.mask_targets([InstanceMasks.from_dense(planes)], [boxes], [matched], 28, False)
    each = [F.binary_cross_entropy_with_logits(logits[r], all_targets[r]) for r in rows]
    torch.testing.assert_close(loss, torch.stack(each).mean())
    assert 0 < len(rows) < 40 and gradient[rows].abs().sum() > 0
    assert gradient[[r for r in range(40) if r not in rows]].abs().sum() == 0


def test_objects_without_masks_train_rpn_and_box_head_alone():
    model, (images, targets) = small_network(), synthetic_batch()
    losses, _ = losses_and_gradients(model, images, targets)
    bare = [t | {"masks": t["masks"] * 0, "has_mask": torch.zeros(len(t["labels"]), dtype=torch.bool)} for t in targets]
    own, gradients = losses_and_gradients(model, images, bare)
    assert own["loss_mask"] == 0 and all(g is not None and g.isfinite().all() for g in gradients)
    assert all(torch.equal(own[name], losses[name]) for name in losses if name != "loss_mask")
    assert all(p.grad.abs().sum() == 0 for p in model.roi_heads.mask_predictor.parameters())
    assert model.roi_heads.box_predictor.cls_score.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"has_mask": torch.ones(9, dtype=torch.bool)}, "target 0: has_mask must be bool"),
        ({"has_mask": torch.ones(3)}, r"target 0: has_mask must be bool \[3\], got torch.float32 \[3\]"),
        ({"ignore_regions": torch.zeros(1, 9, 9, dtype=torch.uint8)}, "target 0: ignore_regions are 9x9, their image"),
    ],
)
def test_wrong_flags_and_regions_are_refused(wrong, message):
    images, targets = synthetic_batch()
    targets[0] |= wrong
    with pytest.raises(ValueError, match=message):
        small_network()(images, targets)
