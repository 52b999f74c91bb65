"""Region Proposal Network: pyramid -> proposals and, in training, the RPN's two losses.

Ren et al., "Faster R-CNN" (arXiv:1506.01497), section 3.1.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou, clip_boxes_to_image

from network_files.anchors import AnchorGenerator
from network_files.boxes import BoxCoder, at_least_float32
from network_files.matching import BETWEEN_THRESHOLDS, BalancedSampler, Matcher
from network_files.on_device import nms_per_group, true_indices


class RegionProposalNetwork(nn.Module):
    """Score and refine anchors, propose the best, and learn from a sample of them.

    Args:
        anchor_generator: the anchors.
        head: predicts objectness and deltas of every anchor.
        fg_iou_thresh, bg_iou_thresh: an anchor is positive from the first IoU on, and background below the second.
        batch_size_per_image, positive_fraction: anchors sampled per image for the losses, and the largest fraction of
            positive ones.
        pre_nms_top_n, post_nms_top_n: proposals kept per level before NMS and per image after it, as
            {"training": n, "testing": m}.
        nms_thresh: of two proposals of a level with a higher IoU, the one with the lower score is dropped.
        score_thresh: proposals with a lower objectness probability are dropped.
    """

    smallest_side = 1e-3

    def __init__(
        self,
        anchor_generator: AnchorGenerator,
        head: nn.Module,
        fg_iou_thresh: float,
        bg_iou_thresh: float,
        batch_size_per_image: int,
        positive_fraction: float,
        pre_nms_top_n: dict[str, int],
        post_nms_top_n: dict[str, int],
        nms_thresh: float,
        score_thresh: float = 0.0,
    ):
        super().__init__()
        self.anchor_generator = anchor_generator
        self.head = head
        self.box_coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        self.matcher = Matcher(fg_iou_thresh, bg_iou_thresh, allow_low_quality_matches=True)
        self.sampler = BalancedSampler(batch_size_per_image, positive_fraction)
        self.pre_nms_top_n = pre_nms_top_n
        self.post_nms_top_n = post_nms_top_n
        self.nms_thresh = nms_thresh
        self.score_thresh = score_thresh

    def forward(
        self,
        levels: Sequence[Tensor],
        padded_size: tuple[int, int],
        image_sizes: Sequence[tuple[int, int]],
        gt_boxes: Sequence[Tensor] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Propose boxes.

        Args:
            levels: [B, C, H_i, W_i] per pyramid level, finest first.
            padded_size: height and width of the padded batch, in pixels.
            image_sizes: height and width of each image without the padding.
            gt_boxes: per image float [N, 4]; required in training.

        Returns:
            Proposals, float32 [P, 4] per image, x1y1x2y2 in pixels of the resized image, best first; and in training
            the losses `loss_objectness` and `loss_rpn_box_reg`, otherwise an empty dict.
        """
        level_logits, level_deltas = self.head(levels)
        objectness = at_least_float32(torch.cat([per_anchor(x, 1).squeeze(-1) for x in level_logits], dim=1))
        deltas = at_least_float32(torch.cat([per_anchor(x, 4) for x in level_deltas], dim=1))
        anchors = self.anchor_generator(padded_size, levels)
        with torch.no_grad():
            proposals = self.propose(objectness, deltas, anchors, image_sizes)
        if not self.training:
            return proposals, {}
        if gt_boxes is None:
            raise ValueError("training requires gt_boxes")
        return proposals, self.losses(objectness, deltas, torch.cat(anchors), gt_boxes)

    def propose(
        self,
        objectness: Tensor,
        deltas: Tensor,
        anchors: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Tensor]:
        """The best boxes of each image: top n per level, decoded, clipped, NMS per level, top n in all.

        Args:
            objectness: logits [B, A]; deltas: [B, A, 4]; anchors: per level [A_i, 4], A in all.
        """
        mode = "training" if self.training else "testing"
        counts = [len(level_anchors) for level_anchors in anchors]
        firsts = accumulate(counts, initial=0)
        best, level_ids = [], []
        for i, (logits, first) in enumerate(zip(objectness.split(counts, dim=1), firsts)):
            top = logits.topk(min(self.pre_nms_top_n[mode], logits.shape[1]), dim=1).indices
            best.append(top + first)
            level_ids.append(torch.full_like(top[0], i))
        chosen = torch.cat(best, dim=1)
        chosen_deltas = deltas.gather(1, chosen[..., None].expand(-1, -1, 4))
        chosen_anchors = torch.cat(list(anchors))[chosen]
        decoded = self.box_coder.decode(chosen_deltas.flatten(0, 1), chosen_anchors.flatten(0, 1))
        boxes = [clip_boxes_to_image(b, size) for b, size in zip(decoded.view_as(chosen_deltas), image_sizes)]
        scores = objectness.gather(1, chosen).sigmoid()
        kept = self.suppress(torch.stack(boxes), scores, torch.cat(level_ids))
        return [image_boxes[: self.post_nms_top_n[mode]] for image_boxes in kept]

    def suppress(self, boxes: Tensor, scores: Tensor, level_ids: Tensor) -> list[Tensor]:
        """Drop boxes [B, n, 4] that are too small or have low scores [B, n], apply NMS per image and level [n].

        Returns:
            The kept boxes of each image, best first.
        """
        large = (boxes[..., 2:] - boxes[..., :2] >= self.smallest_side).all(dim=-1)
        kept = []
        for b, s, usable in zip(boxes, scores, true_indices(large & (scores >= self.score_thresh))):
            b, s = b[usable], s[usable]
            kept.append(b[nms_per_group(b, s, level_ids[usable], self.nms_thresh)])
        return kept

    def losses(
        self, objectness: Tensor, deltas: Tensor, anchors: Tensor, gt_boxes: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Faster R-CNN, equation 1, over the sampled anchors of the whole batch; both terms are divided by their count.

        Args:
            objectness: logits [B, A]; deltas: [B, A, 4]; anchors: [A, 4], of all levels.
        """
        # One image after another: the IoU of all anchors and objects of a batch would take gigabytes.
        labels, matches = zip(*(self.assign_targets(boxes, anchors) for boxes in gt_boxes))
        positive, negative, matched_boxes, matched_anchors = [], [], [], []
        for i, (chosen_positive, chosen_negative) in enumerate(self.sampler(labels)):
            matched_boxes.append(gt_boxes[i][matches[i][chosen_positive]])
            matched_anchors.append(anchors[chosen_positive])
            positive.append(chosen_positive + i * len(anchors))
            negative.append(chosen_negative + i * len(anchors))
        positives = torch.cat(positive)
        regression_targets = self.box_coder.encode(torch.cat(matched_boxes), torch.cat(matched_anchors))
        sampled = torch.cat((positives, *negative))
        is_object = torch.zeros(len(sampled), dtype=objectness.dtype, device=sampled.device)
        is_object[: len(positives)] = 1
        loss_box = F.smooth_l1_loss(deltas.flatten(0, 1)[positives], regression_targets, beta=1 / 9, reduction="sum")
        return {
            "loss_objectness": F.binary_cross_entropy_with_logits(objectness.flatten()[sampled], is_object),
            "loss_rpn_box_reg": loss_box / len(sampled),
        }

    def assign_targets(self, gt_boxes: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Labels [A] (1 object, 0 background, -1 ignored) and matched objects [A] (valid where the label is 1)."""
        matches = self.matcher(box_iou(gt_boxes, anchors))
        labels = (matches >= 0).to(torch.int64)
        return labels.masked_fill(matches == BETWEEN_THRESHOLDS, -1), matches


def per_anchor(prediction: Tensor, values: int) -> Tensor:
    """[B, A * values, H, W] -> [B, H * W * A, values], in the order of the anchors."""
    batch, _, height, width = prediction.shape
    return prediction.permute(0, 2, 3, 1).reshape(batch, height * width * (prediction.shape[1] // values), values)
