"""Mask R-CNN (He et al., arXiv:1703.06870) assembled from its parts: images and targets -> losses or detections."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from network_files.anchors import AnchorGenerator
from network_files.boxes import resize_boxes, size_of
from network_files.heads import FastRCNNPredictor, MaskRCNNHeads, MaskRCNNPredictor, RPNHead, TwoMLPHead
from network_files.image_transform import ImageTransform
from network_files.masks.paste import paste_masks
from network_files.matching import Objects
from network_files.roi_align import PyramidRoIAlign, RoIPool
from network_files.roi_heads import RoIHeads
from network_files.rpn import RegionProposalNetwork

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# torchvision's published maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth predates the nested convolution blocks.
OLD_KEYS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2"),
    (r"^(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2"),
    (r"^(roi_heads\.mask_head)\.mask_fcn(\d+)\.", lambda old: f"{old[1]}.{int(old[2]) - 1}.0."),
)


class Backbone(Protocol):
    """A module: images [B, C, H, W] -> levels by name, [B, out_channels, H_i, W_i] each, finest first."""

    out_channels: int

    def __call__(self, images: Tensor, /) -> Mapping[str, Tensor]: ...


class MaskRCNN(nn.Module):
    """Mask R-CNN; arguments have the names, defaults and meaning of torchvision's class.

    Args:
        backbone: [B, C, H, W] -> dict of levels; has `out_channels`.
        num_classes: number of classes with the background; None if both predictors are given.
        min_size, max_size, image_mean, image_std, size_divisible, fixed_size, antialias: see `ImageTransform`.
        rpn_*: see `RegionProposalNetwork`.
        box_*, bbox_reg_weights, mask_*: see `RoIHeads`.
        continuous_paste: how masks are pasted into the image, see `mask_crops`.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        min_size: int | Sequence[int] = 800, max_size: int = 1333,
        image_mean: Sequence[float] | None = None, image_std: Sequence[float] | None = None,
        rpn_anchor_generator: AnchorGenerator | None = None, rpn_head: nn.Module | None = None,
        rpn_pre_nms_top_n_train: int = 2000, rpn_pre_nms_top_n_test: int = 1000,
        rpn_post_nms_top_n_train: int = 2000, rpn_post_nms_top_n_test: int = 1000,
        rpn_nms_thresh: float = 0.7, rpn_fg_iou_thresh: float = 0.7, rpn_bg_iou_thresh: float = 0.3,
        rpn_batch_size_per_image: int = 256, rpn_positive_fraction: float = 0.5, rpn_score_thresh: float = 0.0,
        box_roi_pool: RoIPool | None = None, box_head: nn.Module | None = None, box_predictor: nn.Module | None = None,
        box_score_thresh: float = 0.05, box_nms_thresh: float = 0.5, box_detections_per_img: int = 100,
        box_agnostic_nms: bool = False, box_fg_iou_thresh: float = 0.5, box_bg_iou_thresh: float = 0.5,
        box_batch_size_per_image: int = 512, box_positive_fraction: float = 0.25,
        bbox_reg_weights: tuple[float, float, float, float] | None = None,
        mask_roi_pool: RoIPool | None = None, mask_head: nn.Module | None = None,
        mask_predictor: nn.Module | None = None,
        size_divisible: int = 32, fixed_size: tuple[int, int] | None = None,
        antialias: bool = False, continuous_paste: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.num_classes = num_classes
        self.continuous_paste = continuous_paste
        channels = backbone.out_channels
        for name, predictor in (("box_predictor", box_predictor), ("mask_predictor", mask_predictor)):
            if (num_classes is None) == (predictor is None):
                raise ValueError(f"give either num_classes or {name}")
        mean = IMAGENET_MEAN if image_mean is None else image_mean
        std = IMAGENET_STD if image_std is None else image_std
        self.transform = ImageTransform(min_size, max_size, mean, std, size_divisible, fixed_size, antialias)
        self.backbone = backbone

        anchors = rpn_anchor_generator or AnchorGenerator()
        self.rpn = RegionProposalNetwork(
            anchors, rpn_head or RPNHead(channels, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=rpn_fg_iou_thresh, bg_iou_thresh=rpn_bg_iou_thresh,
            batch_size_per_image=rpn_batch_size_per_image, positive_fraction=rpn_positive_fraction,
            pre_nms_top_n={"training": rpn_pre_nms_top_n_train, "testing": rpn_pre_nms_top_n_test},
            post_nms_top_n={"training": rpn_post_nms_top_n_train, "testing": rpn_post_nms_top_n_test},
            nms_thresh=rpn_nms_thresh, score_thresh=rpn_score_thresh,
        )  # fmt: skip

        classes = num_classes or 0  # 0 is never used: both predictors are given
        box_roi_pool = box_roi_pool or PyramidRoIAlign(output_size=7)
        height, width = box_roi_pool.output_size
        self.roi_heads = RoIHeads(
            box_roi_pool, box_head or TwoMLPHead(channels * height * width, 1024),
            box_predictor or FastRCNNPredictor(1024, classes),
            mask_roi_pool or PyramidRoIAlign(output_size=14),
            mask_head or MaskRCNNHeads(channels, (256, 256, 256, 256)),
            mask_predictor or MaskRCNNPredictor(256, 256, classes),
            fg_iou_thresh=box_fg_iou_thresh, bg_iou_thresh=box_bg_iou_thresh,
            batch_size_per_image=box_batch_size_per_image, positive_fraction=box_positive_fraction,
            bbox_reg_weights=bbox_reg_weights or (10.0, 10.0, 5.0, 5.0),
            score_thresh=box_score_thresh, nms_thresh=box_nms_thresh, detections_per_img=box_detections_per_img,
            agnostic_nms=box_agnostic_nms,
        )  # fmt: skip
        # Without the underscore it is new in torch 2.5.
        self._register_load_state_dict_pre_hook(lambda state_dict, *_: rename_old_keys(state_dict))

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[dict] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Compute the losses in training mode, the detections in evaluation mode.

        Args:
            images: [C, H, W] each, of any sizes: uint8, which becomes 0..1, or float, in the units of `image_mean`.
            targets: in training, per image `boxes` float [N, 4], x1y1x2y2 in pixels of the image, `labels` int64 [N],
                1 <= label < num_classes, and `masks`, InstanceMasks or a uint8 or bool tensor [N, H, W]; preferably on
                the CPU, from where they are moved to the images' device without waiting for it. Optional: `has_mask`
                bool [N], the objects that the mask loss counts, and `ignore_regions`, like `masks`, [R, H, W]: regions
                in which nothing is background, see `spare_regions`.

        Returns:
            In training a dict of scalars: `loss_classifier, loss_box_reg, loss_mask, loss_objectness,
            loss_rpn_box_reg`. In evaluation one dict per image, best detection first: `boxes` float [D, 4] in
            pixels of the image, `labels` int64 [D], `scores` float [D] and `masks`, probabilities float [D, 1, H, W].
        """
        if self.training:
            return self.losses(images, targets)
        detections = self.detect(images)
        for detection, image in zip(detections, images):
            detection["masks"] = paste_masks(
                detection["masks"], detection["boxes"], size_of(image), self.continuous_paste
            )
        return detections

    def losses(self, images: Sequence[Tensor], targets: Sequence[dict] | None) -> dict[str, Tensor]:
        """Compute the five losses. The arguments are as in `forward`."""
        check_targets(targets, images, self.num_classes)
        batch, targets = self.transform(images, targets)
        objects = Objects.of(targets, batch.tensors.device)
        features = self.backbone(batch.tensors)
        proposals, rpn_losses = self.rpn(list(features.values()), batch.tensors.shape[-2:], batch.image_sizes, objects)
        return self.roi_heads.losses(features, proposals, batch.image_sizes, objects) | rpn_losses

    def detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Detect as `forward` does in evaluation mode, but leave `masks` unpasted: float [D, 1, 28, 28]."""
        batch, _ = self.transform(images)
        features = self.backbone(batch.tensors)
        proposals, _ = self.rpn(list(features.values()), batch.tensors.shape[-2:], batch.image_sizes)
        detections = self.roi_heads.detect(features, proposals, batch.image_sizes)
        for detection, image, size in zip(detections, images, batch.image_sizes):
            detection["boxes"] = resize_boxes(detection["boxes"], size, size_of(image))
        return detections


def check_targets(targets: Sequence[dict] | None, images: Sequence[Tensor], num_classes: int | None) -> None:
    """Raise ValueError or TypeError for invalid training targets. Targets on the CPU cause no wait for a GPU."""
    if targets is None or len(targets) != len(images):
        raise ValueError(f"training requires a target for each of the {len(images)} images")
    for i, (target, image) in enumerate(zip(targets, images)):
        if missing := {"boxes", "labels", "masks"} - set(target):
            raise ValueError(f"target {i} lacks {sorted(missing)}")
        boxes, labels, masks = target["boxes"], target["labels"], target["masks"]
        if not isinstance(boxes, Tensor):
            raise TypeError(f"target {i}: boxes must be a float tensor [N, 4], got a {type(boxes).__name__}")
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
            raise TypeError(f"target {i}: boxes must be float [N, 4], got {boxes.dtype} {list(boxes.shape)}")
        if labels.dtype != torch.int64:
            raise TypeError(f"target {i}: labels must be int64, got {labels.dtype}")
        if not len(boxes) == len(labels) == len(masks):
            raise ValueError(f"target {i}: {len(boxes)} boxes, {len(labels)} labels and {len(masks)} masks differ")
        has_mask = target.get("has_mask", labels > 0)
        if has_mask.dtype != torch.bool or len(has_mask) != len(boxes):
            raise ValueError(
                f"target {i}: has_mask must be bool [{len(boxes)}], got {has_mask.dtype} [{len(has_mask)}]"
            )
        for name, planes in (("masks", masks), ("ignore_regions", target.get("ignore_regions", masks))):
            (height, width), size = size_of(planes) if isinstance(planes, Tensor) else planes.size, size_of(image)
            if (height, width) != size:
                raise ValueError(f"target {i}: {name} are {height}x{width}, their image is {size[0]}x{size[1]}")
        largest = torch.iinfo(torch.int64).max if num_classes is None else num_classes - 1
        for bad in torch.where((labels < 1) | (labels > largest))[0][:1].tolist():
            classes = "K" if num_classes is None else largest
            raise ValueError(f"target {i}: label {int(labels[bad])} is not one of 1..{classes}")
        for bad in torch.where(~(boxes[:, 2:] > boxes[:, :2]).all(dim=1))[0][:1].tolist():
            raise ValueError(f"target {i}: box {boxes[bad].tolist()} has no width or height")


def rename_old_keys(state_dict: dict[str, Any]) -> None:
    """Rename the keys of older torchvision state dicts to the current ones, in place. Other keys stay."""
    for key in list(state_dict):
        for pattern, replacement in OLD_KEYS:
            if (new_key := re.sub(pattern, replacement, key)) != key:
                state_dict[new_key] = state_dict.pop(key)
