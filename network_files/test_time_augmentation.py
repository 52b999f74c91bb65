"""Test-time augmentation: detect in several versions of an image, and merge the detections.

As in Detectron2 (`GeneralizedRCNNWithTTA`), the versions are the image at several sizes, plain and mirrored. The boxes
of all versions pass one more NMS per class; the masks of the remaining ones are predicted in every version, and their
probabilities averaged.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from network_files.boxes import resize_boxes, size_of
from network_files.mask_rcnn import MaskRCNN
from network_files.roi_align import SharedPyramid

SCALES = (0.75, 1.0, 1.25)  # times the network's own size: 600, 800 and 1000 pixels


def with_tta(model: MaskRCNN) -> MaskRCNN:
    """Wrap a network in `TestTimeAugmentation`, which replaces the network in evaluation."""
    return cast(MaskRCNN, TestTimeAugmentation(model))


class Version(NamedTuple):
    """One version of an image: its size, whether it is mirrored, and its feature pyramid."""

    is_mirrored: bool
    size: tuple[int, int]  # height and width without padding
    padded_size: tuple[int, int]  # with padding
    features: SharedPyramid  # [1, C, H_i, W_i] per level


class TestTimeAugmentation(nn.Module):
    """A Mask R-CNN with test-time augmentation, for evaluation only. Call `detect` as on a `MaskRCNN`.

    Each scale, a factor of the network's input size, adds a plain version and, if `mirrored`, a mirrored one. The
    pyramids of all versions are kept until the image's masks are predicted: some hundred megabytes.
    """

    __test__ = False  # for pytest: not a test, despite its name

    def __init__(self, model: MaskRCNN, scales: Sequence[float] = SCALES, mirrored: bool = True):
        super().__init__()
        self.model, self.scales, self.mirrored = model, tuple(scales), mirrored
        self.continuous_paste = model.continuous_paste

    def detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Return the detections in each image, with mask probabilities [D, 1, 28, 28], as `MaskRCNN.detect` does."""
        return [self.detect_in(image) for image in images]

    def detect_in(self, image: Tensor) -> dict[str, Tensor]:
        heads, size = self.model.roi_heads, size_of(image)
        versions, found = [], []
        for version in self.versions(image):
            seen = self.detect_boxes(version)
            boxes = resize_boxes(seen["boxes"], version.size, size)
            found.append(seen | {"boxes": mirror(boxes, size[1]) if version.is_mirrored else boxes})
            versions.append(version)
        boxes, labels, scores = (torch.cat([d[name] for d in found]) for name in ("boxes", "labels", "scores"))
        keep = batched_nms(boxes, scores, heads.nms_groups(labels), heads.nms_thresh)[: heads.detections_per_img]
        boxes, labels, scores = boxes[keep], labels[keep], scores[keep]
        masks = torch.stack([self.mask_probabilities(version, boxes, labels, size) for version in versions]).mean(0)
        return {"boxes": boxes, "labels": labels, "scores": scores, "masks": masks}

    def versions(self, image: Tensor) -> Iterator[Version]:
        for scale in self.scales:
            transform = copy.copy(self.model.transform)
            transform.min_size = (max(1, round(transform.min_size[-1] * scale)),)
            transform.max_size = max(1, round(transform.max_size * scale))
            for is_mirrored in (False, True) if self.mirrored else (False,):
                batch, _ = transform([image.flip(-1) if is_mirrored else image])
                height, width = batch.tensors.shape[-2:]
                features = SharedPyramid(self.model.backbone(batch.tensors))
                yield Version(is_mirrored, batch.image_sizes[0], (height, width), features)

    def detect_boxes(self, version: Version) -> dict[str, Tensor]:
        """Return `boxes`, `labels` and `scores` of the objects in a version; boxes are in pixels of the version."""
        levels, sizes = list(version.features.values()), [version.size]
        proposals, _ = self.model.rpn(levels, version.padded_size, sizes)
        return self.model.roi_heads.detect_boxes(version.features, proposals, sizes)[0]

    def mask_probabilities(self, version: Version, boxes: Tensor, labels: Tensor, size: tuple[int, int]) -> Tensor:
        """Predict masks, float [D, 1, 28, 28], from a version for boxes [D, 4] in the image of `size` (H, W)."""
        moved = resize_boxes(mirror(boxes, size[1]) if version.is_mirrored else boxes, size, version.size)
        probabilities = self.model.roi_heads.predict_masks(version.features, [moved], [version.size], labels).sigmoid()
        return (probabilities.flip(-1) if version.is_mirrored else probabilities)[:, None]


def mirror(boxes: Tensor, width: int) -> Tensor:
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack((width - x2, y1, width - x1, y2), dim=1)
