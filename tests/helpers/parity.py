"""Pairs of torchvision's Mask R-CNN and ours with the same weights, images for both, and comparisons of the outputs.

The tests of the network and the program that writes docs/EXACTNESS.md share them.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN as ReferenceMaskRCNN
from torchvision.models.detection import anchor_utils, faster_rcnn, mask_rcnn, maskrcnn_resnet50_fpn_v2, rpn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from backbone import resnet, resnet50_fpn_backbone
from backbone.feature_pyramid import FeaturePyramidNetwork, LastLevelMaxPool
from backbone.resnet50_fpn import BackboneWithFPN
from network_files import MaskRCNN, anchors, heads
from network_files.roi_align import PyramidRoIAlign
from train_utils.models import v2_heads

# Small enough to be fast. The heads see all classes, but few proposals.
SMALL = dict(
    min_size=96,
    max_size=160,
    rpn_pre_nms_top_n_train=300,
    rpn_post_nms_top_n_train=200,
    rpn_pre_nms_top_n_test=100,
    rpn_post_nms_top_n_test=50,
    box_batch_size_per_image=32,
    box_score_thresh=0.02,
    box_detections_per_img=12,
)
# Both networks compute in float64, so that no rounding decides at a threshold, a rank or a ReLU, on any processor.
LOSS_TOLERANCE = 1e-7  # relative
OBJECTNESS_TOLERANCE = 1e-5  # torchvision computes loss_objectness in float32, as its labels are
GRADIENT_TOLERANCE = 1e-9  # relative to the gradient's largest entry
DETECTION_TOLERANCE = 1e-9  # pixels and probabilities
THIN = 16  # channels of the thin pyramid
LOSSES = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
Batch = tuple[list[Tensor], list[dict]]
Parts = Callable[[SimpleNamespace], dict[str, nn.Module]]


# --- pictures -------------------------------------------------------------------------------------------------


def synthetic_batch() -> Batch:
    """Three pictures of different shapes with 3, 5 and 1 ellipses on soft colours."""
    generator = torch.Generator().manual_seed(5)
    images, targets = [], []
    for height, width, count in ((120, 163, 3), (171, 110, 5), (128, 250, 1)):
        image = F.interpolate(torch.rand(1, 3, 5, 6, generator=generator), size=(height, width), mode="bilinear")[0]
        image = 0.9 * image + 0.1 * torch.rand(image.shape, generator=generator)
        y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
        masks = []
        for _ in range(count):
            cy, cx, ry, rx = (torch.rand(4, generator=generator) * 0.5 + 0.15) * torch.tensor([height, width] * 2)
            mask = ((y - cy) / ry * 2) ** 2 + ((x - cx) / rx * 2) ** 2 < 1
            image[:, mask] = torch.rand(3, 1, generator=generator)
            masks.append(mask)
        boxes = [[m.any(0).nonzero().min(), m.any(1).nonzero().min(), m.any(0).nonzero().max() + 1,
                  m.any(1).nonzero().max() + 1] for m in masks]  # fmt: skip
        targets.append(
            {
                "boxes": torch.tensor(boxes, dtype=torch.float32),
                "labels": torch.randint(1, 91, (count,), generator=generator),
                "masks": torch.stack(masks).to(torch.uint8),
            }
        )
        images.append(image)
    return images, targets


def in_float64(batch: Batch) -> Batch:
    """The images, and the targets' boxes, in float64."""
    images, targets = batch
    return [image.double() for image in images], [dict(t, boxes=t["boxes"].double()) for t in targets]


def without_objects(image: Tensor) -> dict:
    return {
        "boxes": torch.zeros(0, 4, dtype=image.dtype),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros((0, *image.shape[-2:]), dtype=torch.uint8),
    }


# --- pairs of networks ----------------------------------------------------------------------------------------


@functools.cache
def backbones(full: bool = False) -> tuple[nn.Module, nn.Module]:
    """Torchvision's backbone and ours with the same weights; all is trained but the frozen normalisations.

    Args:
        full: False gives ours with few layers and channels twice: for comparisons of what comes after the pyramid.
    """
    torch.manual_seed(11)
    if not full:
        thin = thin_backbone(THIN)
        enliven_norms(thin)
        return thin, copy.deepcopy(thin)
    reference = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=5
    )
    enliven_norms(reference)
    own = resnet50_fpn_backbone(norm_layer=FrozenBatchNorm2d, trainable_layers=5)
    own.load_state_dict(reference.state_dict(), strict=True)
    return reference, own


def thin_backbone(
    channels: int, fpn_norm: resnet.NormLayer | None = None, stride_in_1x1: bool = False
) -> BackboneWithFPN:
    """A ResNet of a few narrow blocks, and a pyramid of that many channels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "STAGE_BLOCKS", (2, 1, 1, 1))
        patch.setattr(resnet, "STAGE_WIDTHS", (8, 8, 16, 16))
        body = resnet.ResNet(FrozenBatchNorm2d, stride_in_1x1=stride_in_1x1)
        fpn = FeaturePyramidNetwork(body.out_channels, channels, LastLevelMaxPool(), norm_layer=fpn_norm)
    backbone = BackboneWithFPN(body, fpn)
    backbone.out_channels = channels
    return backbone


@torch.no_grad()
def enliven_norms(backbone: nn.Module) -> None:
    """Give normalisations values that matter; the small third one of a block keeps the residual sums from growing."""
    for name, module in backbone.named_modules():
        if isinstance(module, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.8, 1.2).mul_(0.3 if name.endswith("bn3") else 1)
            module.bias.normal_(std=0.1)


@functools.cache
def lively_state(full: bool = False) -> dict[str, Tensor]:
    """Weights under which proposals, classes, scores and masks vary, as they do after training."""
    torch.manual_seed(12)
    model = ReferenceMaskRCNN(copy.deepcopy(backbones(full)[0]), 91, **SMALL, **head_parts(THEIRS, full)).eval()
    heads = model.roi_heads
    nn.init.normal_(model.rpn.head.bbox_pred.weight, std=0.02)
    nn.init.normal_(heads.box_predictor.bbox_pred.weight, std=0.15)
    spread_logits(model.rpn.head.cls_logits, 1.0)
    spread_logits(heads.box_predictor.cls_score, 3.0)
    spread_logits(heads.mask_predictor.mask_fcn_logits, 2.0)
    with torch.no_grad():
        model(synthetic_batch()[0])
    return copy.deepcopy(model.state_dict())


def head_parts(source: SimpleNamespace, full: bool) -> dict[str, nn.Module]:
    """The arguments of a thin network's heads, whose last layer has the width that the predictor expects."""
    return {} if full else {"mask_head": source.MaskRCNNHeads(THIN, (THIN, THIN, THIN, 256), 1)}


def spread_logits(layer: nn.Module, deviation: float) -> None:
    """Change the layer, when it is first called, so that its logits have mean 0 a channel and this deviation.

    Features of an untrained network are nearly the same everywhere: so are all logits without this.
    """

    def rescale(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        hook.remove()
        logits = output.transpose(0, 1).flatten(1)
        mean = logits.mean(1, keepdim=True)
        scale = deviation / (logits - mean).std()
        layer.weight.mul_(scale)
        layer.bias.sub_(mean[:, 0]).mul_(scale)
        return layer(*inputs)

    hook = layer.register_forward_hook(rescale)


def pair(
    num_classes: int | None = 91,
    parts: Parts | None = None,
    full: bool = False,
    dtype: torch.dtype = torch.float64,
    **arguments,
) -> tuple[ReferenceMaskRCNN, MaskRCNN]:
    """Torchvision's network and ours, made with the same arguments, with the same weights.

    Args:
        parts: makes further arguments, which are modules, from THEIRS or OURS.
        full: False gives both a thin backbone and a thin mask head.
    """
    arguments = SMALL | arguments
    theirs, ours = (head_parts(source, full) | (parts(source) if parts else {}) for source in (THEIRS, OURS))
    torch.manual_seed(13)
    reference = ReferenceMaskRCNN(copy.deepcopy(backbones(full)[0]), num_classes, **arguments, **theirs)
    state = reference.state_dict()
    fitting = {k: v for k, v in lively_state(full).items() if k in state and state[k].shape == v.shape}
    reference.load_state_dict(fitting, strict=False)
    own = MaskRCNN(copy.deepcopy(backbones(full)[1]), num_classes, **arguments, **ours)
    own.load_state_dict(reference.state_dict(), strict=True)
    return reference.to(dtype), own.to(dtype)


def pair_for_fine_tuning(state: dict[str, Tensor], **arguments) -> tuple[ReferenceMaskRCNN, MaskRCNN]:
    """Both with these weights as training starts from published ones: normalisations frozen, three layers trained.

    Ours is laid out as train.py lays it out, channels last.
    """
    reference = ReferenceMaskRCNN(
        resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3),
        91,
        **arguments,
    )
    own = MaskRCNN(resnet50_fpn_backbone(norm_layer=FrozenBatchNorm2d, trainable_layers=3), 91, **arguments)
    reference.load_state_dict(dict(state), strict=True)
    own.load_state_dict(reference.state_dict(), strict=True)
    return reference, own.to(memory_format=torch.channels_last)


def pair_of_v2(images: list[Tensor], **arguments) -> tuple[ReferenceMaskRCNN, MaskRCNN]:
    """The second version, with random numbers under which detections of the pictures vary."""
    reference = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, **arguments)
    enliven_norms(reference)
    nn.init.normal_(reference.roi_heads.box_predictor.bbox_pred.weight, std=0.05)
    spread_logits(reference.rpn.head.cls_logits, 1.0)
    spread_logits(reference.roi_heads.box_predictor.cls_score, 3.0)
    spread_logits(reference.roi_heads.mask_predictor.mask_fcn_logits, 2.0)
    with torch.no_grad():
        reference.eval()(images)
    backbone = resnet50_fpn_backbone(trainable_layers=5, fpn_norm_layer=nn.BatchNorm2d)
    own = MaskRCNN(backbone, 91, **v2_heads(backbone.out_channels), **arguments)
    own.load_state_dict(reference.state_dict(), strict=True)
    return reference, own.to(memory_format=torch.channels_last)


THEIRS = SimpleNamespace(
    AnchorGenerator=anchor_utils.AnchorGenerator,
    RPNHead=rpn.RPNHead,
    RoIAlign=lambda names, size, ratio: MultiScaleRoIAlign(list(names), size, ratio),
    TwoMLPHead=faster_rcnn.TwoMLPHead,
    FastRCNNPredictor=faster_rcnn.FastRCNNPredictor,
    FastRCNNConvFCHead=faster_rcnn.FastRCNNConvFCHead,
    MaskRCNNHeads=mask_rcnn.MaskRCNNHeads,
    MaskRCNNPredictor=mask_rcnn.MaskRCNNPredictor,
)
OURS = SimpleNamespace(
    AnchorGenerator=anchors.AnchorGenerator,
    RPNHead=heads.RPNHead,
    RoIAlign=PyramidRoIAlign,
    TwoMLPHead=heads.TwoMLPHead,
    FastRCNNPredictor=heads.FastRCNNPredictor,
    FastRCNNConvFCHead=heads.FastRCNNConvFCHead,
    MaskRCNNHeads=heads.MaskRCNNHeads,
    MaskRCNNPredictor=heads.MaskRCNNPredictor,
)


# --- comparison -----------------------------------------------------------------------------------------------


def losses_of(model: nn.Module, images: list[Tensor], targets: list[dict], seed: int = 3) -> dict[str, Tensor]:
    model.train()
    torch.manual_seed(seed)
    return model(images, targets)


@torch.no_grad()
def detections_of(model: nn.Module, images: list[Tensor]) -> list[dict[str, Tensor]]:
    return model.eval()(images)


def detections_in_float64(model: nn.Module, images: list[Tensor]) -> list[dict[str, Tensor]]:
    """What a copy of the network in float64 finds among few proposals, so that rounding decides nothing."""
    with few_proposals(copied := copy.deepcopy(model).double()):
        return detections_of(copied, [image.double() for image in images])


@contextmanager
def few_proposals(model: nn.Module, proposals: int = 60, detections: int = 12) -> Iterator[None]:
    """Context in which the full-size heads of either network, in evaluation mode, see a tenth of their usual input."""
    rpn, heads = model.rpn, model.roi_heads
    tops = rpn._post_nms_top_n if hasattr(rpn, "_post_nms_top_n") else rpn.post_nms_top_n
    before = tops["testing"], heads.detections_per_img
    tops["testing"], heads.detections_per_img = proposals, detections
    yield
    tops["testing"], heads.detections_per_img = before


def assert_same_losses(own: dict[str, Tensor], reference: dict[str, Tensor], tolerance: float = LOSS_TOLERANCE) -> None:
    """Each loss within `tolerance`, relative to the reference (and absolute where that is near 0)."""
    assert set(own) == set(reference) == LOSSES
    for name, value in reference.items():
        assert own[name].item() == pytest.approx(value.item(), rel=max(tolerance, loss_tolerance(name)), abs=1e-7), name


def loss_tolerance(name: str) -> float:
    """How far a loss may be from torchvision's in float64, relative."""
    return OBJECTNESS_TOLERANCE if name == "loss_objectness" else LOSS_TOLERANCE


def assert_same_detections(
    own: list[dict[str, Tensor]],
    reference: list[dict[str, Tensor]],
    least: int = 1,
    tolerance: float = DETECTION_TOLERANCE,
) -> None:
    """The same detections in float64, `least` or more per image; equally scored ones may have changed places."""
    assert len(own) == len(reference)
    for ours, theirs in zip(own, reference):
        assert set(ours) == set(theirs) == {"boxes", "labels", "scores", "masks"}
        assert len(ours["boxes"]) == len(theirs["boxes"]) >= least
        assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {k: (v.shape, v.dtype) for k, v in theirs.items()}
        assert (ours["scores"].diff() <= 0).all()
        distances = (ours["boxes"][:, None] - theirs["boxes"]).abs().amax(2)
        distances[ours["labels"][:, None] != theirs["labels"]] = float("inf")
        nearest = distances.argmin(1)
        assert len(nearest.unique()) == len(nearest)
        theirs = {k: v[nearest] for k, v in theirs.items()}
        assert torch.equal(ours["labels"], theirs["labels"])
        for name in ("boxes", "scores", "masks"):
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=tolerance)


# --- cases ----------------------------------------------------------------------------------------------------

DIFFERENT_ARGUMENTS = {
    "fixed size": dict(fixed_size=(112, 80)),
    "several training sizes": dict(
        min_size=(64, 72, 80, 88),
        max_size=110,
        image_mean=(0.4, 0.5, 0.6),
        image_std=(0.3, 0.2, 0.25),
        size_divisible=64,
    ),
    "anchors": dict(
        parts=lambda source: {
            "rpn_anchor_generator": source.AnchorGenerator(
                ((8, 12), (20, 30), (40, 56), (80, 100), (128, 150)), ((0.4, 1.0, 1.5, 2.2),) * 5
            )
        }
    ),
    "thresholds": dict(
        rpn_nms_thresh=0.5,
        rpn_fg_iou_thresh=0.5,
        rpn_bg_iou_thresh=0.4,
        rpn_score_thresh=0.4,
        box_score_thresh=0.1,
        box_nms_thresh=0.3,
        box_fg_iou_thresh=0.6,
        box_bg_iou_thresh=0.3,
        bbox_reg_weights=(8.0, 9.0, 4.0, 6.0),
    ),
    "numbers": dict(
        rpn_pre_nms_top_n_train=500,
        rpn_post_nms_top_n_train=90,
        rpn_pre_nms_top_n_test=40,
        rpn_post_nms_top_n_test=30,
        rpn_batch_size_per_image=90,
        rpn_positive_fraction=0.2,
        box_batch_size_per_image=24,
        box_positive_fraction=0.4,
        box_detections_per_img=7,
    ),
    "mask RoIAlign": dict(parts=lambda source: {"mask_roi_pool": source.RoIAlign(("0", "1"), 14, 1)}),
    "smaller masks": dict(parts=lambda source: {"mask_roi_pool": source.RoIAlign(("0", "1", "2", "3"), 7, 2)}),
    "box RoIAlign": dict(parts=lambda source: {"box_roi_pool": source.RoIAlign(("1", "2"), 7, 0)}),
    "a long side that decides": dict(min_size=120, max_size=100),
    "an odd padding": dict(size_divisible=1),
    "one class": dict(num_classes=2),
    "predictors": dict(
        num_classes=None,
        parts=lambda source: {
            "box_predictor": source.FastRCNNPredictor(1024, 91),
            "mask_predictor": source.MaskRCNNPredictor(256, 40, 91),
        },
    ),
    "heads": dict(
        parts=lambda source: {
            "rpn_head": source.RPNHead(THIN, 3, 2),
            "box_head": source.FastRCNNConvFCHead((THIN, 7, 7), [32, 16], [64, 1024]),
            "mask_head": source.MaskRCNNHeads(THIN, (48, 256), 2),
        }
    ),
    "hardly any NMS": dict(
        rpn_nms_thresh=1.0, box_nms_thresh=0.9, box_detections_per_img=40, rpn_post_nms_top_n_test=60
    ),
}

OLDER_KEYS = (
    (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.0\.(weight|bias)$", r"\1.\2"),
    (r"^(rpn\.head\.conv)\.0\.0\.(weight|bias)$", r"\1.\2"),
    (r"^(roi_heads\.mask_head)\.(\d)\.0\.(weight|bias)$", lambda m: f"{m[1]}.mask_fcn{int(m[2]) + 1}.{m[3]}"),
)


def edge_cases() -> dict[str, tuple[list[Tensor], list[dict]]]:
    """Pictures float in 0..1 and targets with dense masks, by what is unusual about them."""
    images, targets = synthetic_batch()
    height, width = images[0].shape[-2:]
    corners = torch.tensor([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1], [70, 50]])
    low = torch.rand(300, 2) * torch.tensor([width - 60, height - 60])
    many = torch.cat((low, low + 4 + 50 * torch.rand(300, 2)), 1).round()
    rim = [[0, 20, 40, 60], [30, 0, 90, 33], [width - 50, 40, width, 90], [60, height - 30, 100, height]]
    rim = torch.tensor([*rim, [0, 0, width, height], [0, 70, width, 80]])
    strip = F.interpolate(torch.rand(1, 3, 4, 60), size=(32, 2000), mode="bilinear")[0]
    along = torch.tensor([[10, 2, 200, 30], [900, 0, 1100, 32], [1990, 0, 2000, 32]])
    return {
        "an image without objects": (images[:2], [targets[0], without_objects(images[1])]),
        "no object at all": (images[:2], [without_objects(image) for image in images[:2]]),
        "one-pixel objects": (images[:1], [filled_boxes(images[0], torch.cat((corners, corners + 1), 1))]),
        "boxes on the border": (images[:1], [filled_boxes(images[0], rim)]),
        "300 objects": (images[:1], [filled_boxes(images[0], many)]),
        "a picture of 32 x 2000": ([strip], [filled_boxes(strip, along)]),
        "a batch of one": (images[2:], targets[2:]),
    }


def filled_boxes(image: Tensor, boxes: Tensor) -> dict:
    """A target whose objects fill their boxes [N, 4], which end on whole pixels."""
    masks = torch.zeros((len(boxes), *image.shape[-2:]), dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist()):
        mask[y1:y2, x1:x2] = 1
    return {"boxes": boxes.float(), "labels": 1 + torch.arange(len(boxes)) % 90, "masks": masks}
