"""The second stage: pyramid and proposals -> detections, or the three losses of the box and mask heads.

Fast R-CNN (arXiv:1504.08083), section 2, and Mask R-CNN (arXiv:1703.06870), section 3.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network_files.boxes import BoxCoder, at_least_float32, clip_boxes, padded
from network_files.heads import MaskRCNNPredictor
from network_files.ignore_regions import spare_regions
from network_files.masks.instance_masks import InstanceMasks
from network_files.masks.targets import mask_targets
from network_files.matching import BELOW_THRESHOLD, BETWEEN_THRESHOLDS, BalancedSampler, Matcher, Objects
from network_files.on_device import true_indices
from network_files.roi_align import RoIPool, SharedPyramid
from network_files.suppression import nms_of_images


class RoISample(NamedTuple):
    """The S proposals of a batch that the heads are trained on, ordered by image. P of the proposals are positive."""

    boxes: Tensor  # float [S, 4], x1y1x2y2 in pixels of the resized image
    labels: Tensor  # int64 [S], 0 is background
    matched: Tensor  # int64 [S], the index of its object in the image; valid where its label is not 0
    image_ids: Tensor  # int64 [S]
    positive: Tensor  # int64 [P], the indices of those whose label is not 0, ascending
    numbers: list[tuple[int, int]]  # per image, the numbers of proposals and of positive ones

    def all_boxes(self) -> Sequence[Tensor]:
        """Return `boxes`, split by image."""
        return self.boxes.split([number for number, _ in self.numbers])

    def of_positive(self, values: Tensor) -> Sequence[Tensor]:
        """Select the positive proposals from values [S, ...], and split them by image."""
        return values[self.positive].split([positive for _, positive in self.numbers])


class RoIHeads(nn.Module):
    """Classify and refine proposals, and predict a mask for each detection.

    Args:
        box_roi_pool, box_head, box_predictor: pyramid -> RoI features -> vectors -> class logits and deltas.
        mask_roi_pool, mask_head, mask_predictor: pyramid -> RoI features -> feature maps -> mask logits per class.
        fg_iou_thresh, bg_iou_thresh, batch_size_per_image, positive_fraction: as in `RegionProposalNetwork`.
        bbox_reg_weights: of the deltas (dx, dy, dw, dh).
        score_thresh: detections with at most this class probability are dropped.
        nms_thresh: of two detections of a class with a higher IoU, the one with the lower score is dropped;
            with agnostic_nms, of any two.
        detections_per_img: the most detections kept per image.
    """

    smallest_side = 1e-2

    def __init__(
        self, box_roi_pool: RoIPool, box_head: nn.Module, box_predictor: nn.Module, mask_roi_pool: RoIPool,
        mask_head: nn.Module, mask_predictor: nn.Module, fg_iou_thresh: float, bg_iou_thresh: float,
        batch_size_per_image: int, positive_fraction: float, bbox_reg_weights: tuple[float, float, float, float],
        score_thresh: float, nms_thresh: float, detections_per_img: int, agnostic_nms: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.box_roi_pool, self.box_head, self.box_predictor = box_roi_pool, box_head, box_predictor
        self.mask_roi_pool, self.mask_head, self.mask_predictor = mask_roi_pool, mask_head, mask_predictor
        self.matcher = Matcher(fg_iou_thresh, bg_iou_thresh, allow_low_quality_matches=False)
        self.sampler = BalancedSampler(batch_size_per_image, positive_fraction)
        self.box_coder = BoxCoder(bbox_reg_weights)
        self.score_thresh, self.nms_thresh, self.agnostic_nms = score_thresh, nms_thresh, agnostic_nms
        self.detections_per_img = detections_per_img

    def losses(
        self, features: Mapping[str, Tensor], proposals: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]],
        objects: Objects,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Compute `loss_classifier`, `loss_box_reg` and `loss_mask` over sampled proposals (Mask R-CNN, section 3).

        Args:
            features: level name -> [B, C, H_i, W_i].
            proposals: per image float [P, 4], x1y1x2y2 in pixels of the resized image.
            image_sizes: height and width of each resized image.
        """
        features = SharedPyramid.of(features)
        sample = self.sample_proposals(proposals, objects)
        class_logits, deltas = self.predict_boxes(features, sample.all_boxes(), image_sizes)
        loss_classifier, loss_box_reg = self.fast_rcnn_losses(class_logits, deltas, sample, objects.boxes)

        mask_boxes = sample.of_positive(sample.boxes)
        mask_logits = self.predict_masks(features, mask_boxes, image_sizes, sample.labels[sample.positive])
        aligned = getattr(self.mask_roi_pool, "aligned", False)  # targets are sampled like the features
        counted = None
        if objects.has_mask is not None:
            counted = objects.has_mask[sample.image_ids[sample.positive], sample.matched[sample.positive]]
        matched = sample.of_positive(sample.matched)
        loss_mask = mask_rcnn_loss(mask_logits, mask_boxes, matched, objects.masks, aligned, counted)
        return {"loss_classifier": loss_classifier, "loss_box_reg": loss_box_reg, "loss_mask": loss_mask}

    def detect(
        self, features: Mapping[str, Tensor], proposals: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Detect the objects of each image, best first; arguments as in `losses`.

        Masks are predicted only for the boxes that are kept (Mask R-CNN, section 3.1, "Inference").

        Returns:
            Per image `boxes` float [D, 4], x1y1x2y2 in pixels of the resized image, `labels` int64 [D], `scores`
            float [D] and `masks` float [D, 1, 28, 28], the probabilities for the detected class.
        """
        features = SharedPyramid.of(features)
        detections = self.detect_boxes(features, proposals, image_sizes)
        boxes = [d["boxes"].detach() for d in detections]  # as in training, RoIAlign passes boxes no gradient
        labels = torch.cat([d["labels"] for d in detections])
        probs = self.predict_masks(features, boxes, image_sizes, labels).sigmoid()[:, None]
        for detection, masks in zip(detections, probs.split([len(b) for b in boxes])):
            detection["masks"] = masks
        return detections

    def detect_boxes(
        self, features: Mapping[str, Tensor], proposals: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Detect as `detect` does, but without masks."""
        class_logits, deltas = self.predict_boxes(features, proposals, image_sizes)
        return self.select_detections(class_logits, deltas, proposals, image_sizes)

    def predict_boxes(
        self, features: Mapping[str, Tensor], boxes: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Predict class logits float32 [R, K] and deltas float32 [R, K, 4] for the boxes of all images."""
        x = self.box_head(self.box_roi_pool(features, boxes, image_sizes))
        class_logits, deltas = self.box_predictor(x)
        return at_least_float32(class_logits), at_least_float32(deltas).unflatten(1, (-1, 4))

    def predict_masks(
        self, features: Mapping[str, Tensor], boxes: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]],
        labels: Tensor,
    ) -> Tensor:  # fmt: skip
        """Predict a mask for each of R boxes and its class in `labels`, int64 [R]: logits float32 [R, 28, 28]."""
        x = self.mask_head(self.mask_roi_pool(features, boxes, image_sizes))
        if isinstance(self.mask_predictor, MaskRCNNPredictor):
            return at_least_float32(self.mask_predictor.logits_of_classes(x, labels))
        logits = self.mask_predictor(x)  # the caller's own predictor returns [R, K, 28, 28]
        return at_least_float32(logits[torch.arange(len(labels), device=labels.device), labels])

    @torch.no_grad()
    def sample_proposals(self, proposals: Sequence[Tensor], objects: Objects) -> RoISample:
        """Add the ground-truth boxes to the proposals of each image, match all to the objects, and draw a sample."""
        boxes = objects.boxes.to(proposals[0].dtype)
        counts = [len(m) for m in objects.masks]
        given = [b for p, own, count in zip(proposals, boxes, counts) for b in (p, own[:count])]
        (candidates,), numbers = padded(
            torch.cat(given), counts=[len(p) + count for p, count in zip(proposals, counts)]
        )
        matched = self.matcher(boxes, objects.counts, candidates)
        classes = F.pad(objects.labels, (0, 1))  # one column at least, for `gather`
        labels = classes.gather(1, matched.clamp(min=0)).masked_fill(matched == BELOW_THRESHOLD, 0)
        padding = torch.arange(candidates.shape[1], device=numbers.device) >= numbers[:, None]
        labels = labels.masked_fill((matched == BETWEEN_THRESHOLDS) | padding, -1)
        labels = spare_regions(labels, candidates, objects.regions)
        positive, negative, drawn = self.sampler(labels)
        sampled = torch.cat((positive, negative)).sort().values
        return RoISample(
            candidates.flatten(0, 1)[sampled], labels.flatten()[sampled], matched.flatten()[sampled],
            sampled // candidates.shape[1], torch.searchsorted(sampled, positive), [(p + n, p) for p, n in drawn],
        )  # fmt: skip

    def fast_rcnn_losses(
        self, class_logits: Tensor, deltas: Tensor, sample: RoISample, objects: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute L_cls and L_box (Fast R-CNN, equation 1). `objects`, [B, N, 4], are the ground-truth boxes."""
        boxes, labels, positive = sample.boxes, sample.labels, sample.positive
        if len(labels) == 0:  # images without objects, for which the RPN proposes nothing
            return class_logits.sum() * 0, deltas.sum() * 0
        matched_boxes = objects[sample.image_ids[positive], sample.matched[positive]].to(boxes.dtype)
        regression_targets = self.box_coder.encode(matched_boxes, boxes[positive])
        loss_classifier = F.cross_entropy(class_logits, labels)
        own_deltas = deltas[positive, labels[positive]]
        loss_box_reg = F.smooth_l1_loss(own_deltas, regression_targets, beta=1 / 9, reduction="sum")
        return loss_classifier, loss_box_reg / len(labels)

    def select_detections(
        self, class_logits: Tensor, deltas: Tensor, proposals: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Select each image's detections, best first, from class logits [P, K], deltas [P, K, 4] and proposals."""
        probs = class_logits.softmax(dim=1)[:, 1:]
        classes = probs.shape[1]
        chosen, counts = true_indices((probs > self.score_thresh).flatten(), [len(p) * classes for p in proposals])
        rows, columns = chosen // classes, chosen % classes
        decoded = self.box_coder.decode(deltas[rows, columns + 1], torch.cat(list(proposals))[rows])
        (boxes, scores, labels), _ = padded(decoded, probs[rows, columns], columns + 1, counts=counts)
        boxes = clip_boxes(boxes, image_sizes)
        large = (boxes[..., 2:] - boxes[..., :2] >= self.smallest_side).all(dim=-1)
        usable = large & (labels > 0)  # padding has label 0
        best, counts = nms_of_images(boxes, scores, self.nms_groups(labels), usable, self.nms_thresh)
        best = best[:, : self.detections_per_img]
        found = boxes.gather(1, best[..., None].expand(-1, -1, 4)), labels.gather(1, best), scores.gather(1, best)
        return [
            {"boxes": b[:count], "labels": label[:count], "scores": s[:count]}
            for b, label, s, count in zip(*found, counts)
        ]

    def nms_groups(self, labels: Tensor) -> Tensor:
        """Return the group of each detection; only detections of the same group suppress one another."""
        return torch.zeros_like(labels) if self.agnostic_nms else labels


def mask_rcnn_loss(
    mask_logits: Tensor, boxes: Sequence[Tensor], matched: Sequence[Tensor], masks: Sequence[InstanceMasks],
    aligned: bool = False,
    counted: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Compute L_mask (Mask R-CNN, section 3): mean binary cross-entropy, only on the mask of the true class.

    Args:
        mask_logits: [R, M, M], of the true class of the positive proposals of all images.
        boxes, matched: the positive proposals of each image [R_b, 4], and their objects [R_b].
        masks: the objects of each image.
        aligned: see `PyramidRoIAlign`.
        counted: bool [R], True for the proposals that count, whose object has a mask. None: all count.
    """
    targets = mask_targets(masks, boxes, matched, mask_logits.shape[-1], aligned)
    if len(targets) == 0:
        return mask_logits.sum() * 0
    if counted is None:
        return F.binary_cross_entropy_with_logits(mask_logits, targets)
    weights = counted[:, None, None].to(mask_logits.dtype).expand_as(mask_logits)  # dropping rows would take a wait
    return F.binary_cross_entropy_with_logits(mask_logits, targets, weights, reduction="sum") / weights.sum().clamp(1)
