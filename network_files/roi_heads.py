"""The second stage: pyramid and proposals -> detections, or the three losses of the box and mask heads.

Fast R-CNN (arXiv:1504.08083), section 2, and Mask R-CNN (arXiv:1703.06870), section 3.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, remove_small_boxes

from network_files.boxes import BoxCoder
from network_files.heads import MaskRCNNPredictor
from network_files.instance_masks import InstanceMasks
from network_files.mask_targets import project_masks_on_boxes
from network_files.matching import BELOW_THRESHOLD, BETWEEN_THRESHOLDS, BalancedSampler, Matcher


class RoIHeads(nn.Module):
    """Classify and refine proposals, and predict a mask for each detection.

    Args:
        box_roi_pool, box_head, box_predictor: pyramid -> RoI features -> vectors -> class logits and deltas.
        mask_roi_pool, mask_head, mask_predictor: pyramid -> RoI features -> feature maps -> mask logits per class.
        fg_iou_thresh, bg_iou_thresh: a proposal is positive from the first IoU on, and background below the second.
        batch_size_per_image, positive_fraction: proposals sampled per image for the losses, and the largest fraction
            of positive ones.
        bbox_reg_weights: of the deltas (dx, dy, dw, dh).
        score_thresh: detections with at most this class probability are dropped.
        nms_thresh: of two detections of a class with a higher IoU, the one with the lower score is dropped.
        detections_per_img: the most detections kept per image.
    """

    smallest_side = 1e-2

    def __init__(
        self,
        box_roi_pool: nn.Module,
        box_head: nn.Module,
        box_predictor: nn.Module,
        mask_roi_pool: nn.Module,
        mask_head: nn.Module,
        mask_predictor: nn.Module,
        fg_iou_thresh: float,
        bg_iou_thresh: float,
        batch_size_per_image: int,
        positive_fraction: float,
        bbox_reg_weights: tuple[float, float, float, float],
        score_thresh: float,
        nms_thresh: float,
        detections_per_img: int,
    ):
        super().__init__()
        self.box_roi_pool = box_roi_pool
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.mask_roi_pool = mask_roi_pool
        self.mask_head = mask_head
        self.mask_predictor = mask_predictor
        self.matcher = Matcher(fg_iou_thresh, bg_iou_thresh, allow_low_quality_matches=False)
        self.sampler = BalancedSampler(batch_size_per_image, positive_fraction)
        self.box_coder = BoxCoder(bbox_reg_weights)
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_img = detections_per_img

    def losses(
        self,
        features: Mapping[str, Tensor],
        proposals: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        targets: Sequence[dict],
    ) -> dict[str, Tensor]:
        """The losses over the sampled proposals of a batch: L_cls, L_box and L_mask of Mask R-CNN, section 3.

        Args:
            features: level name -> [B, C, H_i, W_i].
            proposals: per image float [P, 4], x1y1x2y2 in pixels of the resized image.
            image_sizes: height and width of each resized image.
            targets: per image `boxes` [N, 4] and `masks` in the same frame, `labels` int64 [N].

        Returns:
            `loss_classifier`, `loss_box_reg`, `loss_mask`.
        """
        samples = [self.sample_proposals(p, t["boxes"], t["labels"]) for p, t in zip(proposals, targets)]
        boxes, labels, matched = (list(column) for column in zip(*samples))
        class_logits, deltas = self.predict_boxes(features, boxes, image_sizes)
        loss_classifier, loss_box_reg = self.fast_rcnn_losses(class_logits, deltas, boxes, labels, matched, targets)

        positive = [torch.where(image_labels > 0)[0] for image_labels in labels]
        mask_boxes, mask_labels, mask_matched = (
            [values[chosen] for values, chosen in zip(column, positive)] for column in (boxes, labels, matched)
        )
        mask_logits = self.predict_masks(features, mask_boxes, image_sizes, torch.cat(mask_labels))
        masks = [t["masks"] for t in targets]
        aligned = getattr(self.mask_roi_pool, "aligned", False)  # targets are sampled like the features
        loss_mask = mask_rcnn_loss(mask_logits, mask_boxes, mask_matched, masks, aligned)
        return {"loss_classifier": loss_classifier, "loss_box_reg": loss_box_reg, "loss_mask": loss_mask}

    def detect(
        self, features: Mapping[str, Tensor], proposals: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Detections of each image, best first; arguments as in `losses`.

        Masks are predicted only for the boxes that are kept (Mask R-CNN, section 3.1, "Inference").

        Returns:
            Per image `boxes` float [D, 4], x1y1x2y2 in pixels of the resized image, `labels` int64 [D], `scores`
            float [D] and `masks` float [D, 1, 28, 28], the probabilities for the detected class.
        """
        detections = self.detect_boxes(features, proposals, image_sizes)
        boxes = [d["boxes"] for d in detections]
        labels = torch.cat([d["labels"] for d in detections])
        probs = self.predict_masks(features, boxes, image_sizes, labels).sigmoid()[:, None]
        for detection, masks in zip(detections, probs.split([len(b) for b in boxes])):
            detection["masks"] = masks
        return detections

    def detect_boxes(
        self, features: Mapping[str, Tensor], proposals: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """`detect` without the masks."""
        class_logits, deltas = self.predict_boxes(features, proposals, image_sizes)
        counts = [len(p) for p in proposals]
        return [
            self.select_detections(*per_image)
            for per_image in zip(class_logits.split(counts), deltas.split(counts), proposals, image_sizes)
        ]

    def predict_boxes(
        self, features: Mapping[str, Tensor], boxes: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Class logits float32 [R, K] and deltas float32 [R, K, 4] for the boxes of all images."""
        x = self.box_head(self.box_roi_pool(features, boxes, image_sizes))
        class_logits, deltas = self.box_predictor(x)
        return class_logits.float(), deltas.float().unflatten(1, (-1, 4))

    def predict_masks(
        self,
        features: Mapping[str, Tensor],
        boxes: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        labels: Tensor,
    ) -> Tensor:
        """Mask logits float32 [R, 28, 28] for the boxes of all images, only of each box's label (int64 [R])."""
        x = self.mask_head(self.mask_roi_pool(features, boxes, image_sizes))
        if isinstance(self.mask_predictor, MaskRCNNPredictor):
            return self.mask_predictor.logits_of_classes(x, labels).float()
        logits = self.mask_predictor(x)  # the caller's own predictor returns [R, K, 28, 28]
        return logits[torch.arange(len(labels), device=labels.device), labels].float()

    @torch.no_grad()
    def sample_proposals(self, proposals: Tensor, gt_boxes: Tensor, gt_labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Match the proposals of one image and its ground-truth boxes to its objects, and draw a sample.

        Returns:
            Boxes [S, 4], labels int64 [S] (0 is background) and matched objects int64 [S] (valid where label > 0).
        """
        proposals = torch.cat((proposals, gt_boxes.to(proposals.dtype)))
        matches = self.matcher(box_iou(gt_boxes.to(proposals.dtype), proposals))
        if len(gt_boxes) == 0:
            labels = torch.zeros_like(matches)
        else:
            labels = gt_labels[matches.clamp(min=0)]
            labels[matches == BELOW_THRESHOLD] = 0
            labels[matches == BETWEEN_THRESHOLDS] = -1
        sampled = torch.cat(self.sampler(labels)).sort().values
        return proposals[sampled], labels[sampled], matches[sampled]

    def fast_rcnn_losses(
        self,
        class_logits: Tensor,
        deltas: Tensor,
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        matched: Sequence[Tensor],
        targets: Sequence[dict],
    ) -> tuple[Tensor, Tensor]:
        """L_cls and L_box (Fast R-CNN, equation 1): cross-entropy of all samples, smooth L1 of positive deltas."""
        regression_targets = []
        for image_boxes, image_labels, image_matched, target in zip(boxes, labels, matched, targets):
            positive = torch.where(image_labels > 0)[0]
            objects = target["boxes"][image_matched[positive]].to(image_boxes.dtype)
            regression_targets.append(self.box_coder.encode(objects, image_boxes[positive]))
        labels = torch.cat(labels)
        positive = torch.where(labels > 0)[0]
        if len(labels) == 0:  # an image without objects, of which the RPN proposes nothing
            return class_logits.sum() * 0, deltas.sum() * 0
        loss_classifier = F.cross_entropy(class_logits, labels)
        loss_box_reg = F.smooth_l1_loss(
            deltas[positive, labels[positive]], torch.cat(regression_targets), beta=1 / 9, reduction="sum"
        )
        return loss_classifier, loss_box_reg / len(labels)

    def select_detections(
        self, class_logits: Tensor, deltas: Tensor, proposals: Tensor, image_size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Class logits [P, K], deltas [P, K, 4] and proposals [P, 4] of one image -> its detections."""
        probs = class_logits.softmax(dim=1)[:, 1:]
        rows, columns = torch.where(probs > self.score_thresh)
        scores, labels = probs[rows, columns], columns + 1
        boxes = clip_boxes_to_image(self.box_coder.decode(deltas[rows, labels], proposals[rows]), image_size)
        keep = remove_small_boxes(boxes, self.smallest_side)
        boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
        keep = batched_nms(boxes, scores, labels, self.nms_thresh)[: self.detections_per_img]
        return {"boxes": boxes[keep], "labels": labels[keep], "scores": scores[keep]}


def mask_rcnn_loss(
    mask_logits: Tensor,
    boxes: Sequence[Tensor],
    matched: Sequence[Tensor],
    masks: Sequence[InstanceMasks],
    aligned: bool = False,
) -> Tensor:
    """L_mask (Mask R-CNN, section 3): mean binary cross-entropy, only on the mask of the true class.

    Args:
        mask_logits: [R, M, M], of the true class of the positive proposals of all images.
        boxes, matched: the positive proposals of each image [R_b, 4], and their objects [R_b].
        masks: the objects of each image.
        aligned: see `PyramidRoIAlign`.
    """
    size = mask_logits.shape[-1]
    targets = torch.cat([project_masks_on_boxes(m, b, i, size, aligned) for m, b, i in zip(masks, boxes, matched)])
    if len(targets) == 0:
        return mask_logits.sum() * 0
    return F.binary_cross_entropy_with_logits(mask_logits, targets)
