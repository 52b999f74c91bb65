"""Region Proposal Network: pyramid -> proposals and, in training, the RPN's two losses.

Ren et al., "Faster R-CNN" (arXiv:1506.01497), section 3.1.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from network_files.anchors import AnchorGenerator
from network_files.boxes import BoxCoder, at_least_float32, clip_boxes
from network_files.ignore_regions import spare_regions
from network_files.matching import BETWEEN_THRESHOLDS, BalancedSampler, Matcher, Objects
from network_files.on_device import upload
from network_files.suppression import nms_of_rows


class RegionProposalNetwork(nn.Module):
    """Score and refine anchors, and propose the best. In training, learn from a sample of the anchors.

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
        self, anchor_generator: AnchorGenerator, head: nn.Module, fg_iou_thresh: float, bg_iou_thresh: float,
        batch_size_per_image: int, positive_fraction: float, pre_nms_top_n: dict[str, int],
        post_nms_top_n: dict[str, int], nms_thresh: float, score_thresh: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.anchor_generator = anchor_generator
        self.head = head
        self.box_coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        self.matcher = Matcher(fg_iou_thresh, bg_iou_thresh, allow_low_quality_matches=True)
        self.sampler = BalancedSampler(batch_size_per_image, positive_fraction)
        self.pre_nms_top_n, self.post_nms_top_n = pre_nms_top_n, post_nms_top_n
        self.nms_thresh, self.score_thresh = nms_thresh, score_thresh

    def forward(
        self, levels: Sequence[Tensor], padded_size: tuple[int, int], image_sizes: Sequence[tuple[int, int]],
        objects: Objects | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:  # fmt: skip
        """Propose boxes, and in training compute the losses `loss_objectness` and `loss_rpn_box_reg`.

        Args:
            levels: [B, C, H_i, W_i] per pyramid level, finest first.
            padded_size: height and width of the padded batch, in pixels.
            image_sizes: height and width of each image without the padding.
            objects: the ground truth of the images; required in training.

        Returns:
            Per image float32 [P, 4], x1y1x2y2 in pixels of the resized image, best first; and the losses or {}.
        """
        level_logits, level_deltas = self.head(levels)
        objectness = at_least_float32(torch.cat([per_anchor(x, 1).squeeze(-1) for x in level_logits], dim=1))
        deltas = at_least_float32(torch.cat([per_anchor(x, 4) for x in level_deltas], dim=1))
        level_anchors = self.anchor_generator(padded_size, levels)
        anchors, counts = torch.cat(level_anchors), [len(level) for level in level_anchors]
        if not self.training:
            return self.propose(objectness, deltas, anchors, counts, image_sizes), {}
        if objects is None:
            raise ValueError("training requires objects")
        # The targets first: the device computes them before the host waits for NMS.
        targets = self.assign_targets(objects, anchors)
        proposals = self.propose(objectness, deltas, anchors, counts, image_sizes)
        return proposals, self.losses(objectness, deltas, anchors, targets)

    @torch.no_grad()
    def propose(
        self, objectness: Tensor, deltas: Tensor, anchors: Tensor, counts: Sequence[int],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Tensor]:  # fmt: skip
        """Decode and clip the best anchors of each level, apply NMS, and return the best boxes of each image.

        Args:
            objectness: logits [B, A]; deltas: [B, A, 4]; anchors: [A, 4], of all levels; counts: anchors per level.
        """
        mode = "training" if self.training else "testing"
        tops = [min(self.pre_nms_top_n[mode], count) for count in counts]
        best = [
            F.pad(logits.topk(top, dim=1).indices + first, (0, max(tops) - top))
            for logits, top, first in zip(objectness.split(counts, dim=1), tops, accumulate(counts, initial=0))
        ]
        chosen = torch.cat(best, dim=1)  # every level padded to the longest
        places = torch.arange(max(tops)) < torch.tensor(tops)[:, None]
        chosen_deltas = deltas.gather(1, chosen[..., None].expand(-1, -1, 4))
        chosen_anchors = anchors[chosen]
        decoded = self.box_coder.decode(chosen_deltas.flatten(0, 1), chosen_anchors.flatten(0, 1))
        boxes = clip_boxes(decoded.view_as(chosen_deltas), image_sizes)
        scores = objectness.gather(1, chosen).sigmoid()
        large = (boxes[..., 2:] - boxes[..., :2] >= self.smallest_side).all(dim=-1)
        usable = large & (scores >= self.score_thresh) & upload(places, boxes.device).flatten()
        return self.suppress(boxes, scores, usable, len(tops), self.post_nms_top_n[mode])

    def suppress(self, boxes: Tensor, scores: Tensor, usable: Tensor, levels: int, most: int) -> list[Tensor]:
        """Apply NMS per image and level to `usable` boxes [B, n, 4], and return the best, at most `most` per image.

        The scores [B, n] descend within each of the `levels`, which have equal numbers of boxes.
        """
        if boxes.device.type == "cpu":
            level_ids = torch.arange(levels).repeat_interleave(boxes.shape[1] // levels)
            rows = [(b[use], s[use], level_ids[use]) for b, s, use in zip(boxes, scores, usable)]
            return [b[batched_nms(b, s, ids, self.nms_thresh)[:most]] for b, s, ids in rows]
        by_level = boxes.unflatten(1, (levels, -1)).flatten(0, 1)
        kept, counts = nms_of_rows(by_level, usable.view(by_level.shape[:2]), self.nms_thresh)
        ranks = torch.where(kept.view_as(usable), scores, -1.0).sort(dim=1, descending=True, stable=True).indices
        best = boxes.gather(1, ranks[:, :most, None].expand(-1, -1, 4))
        return [b[: sum(counts[i * levels : (i + 1) * levels])] for i, b in enumerate(best)]

    @torch.no_grad()
    def assign_targets(self, objects: Objects, anchors: Tensor) -> "AnchorTargets":
        """Match the anchors [A, 4] to the objects of each image."""
        matches = self.matcher(objects.boxes, objects.counts, anchors[None])
        labels = (matches >= 0).to(torch.int64).masked_fill(matches == BETWEEN_THRESHOLDS, -1)
        return AnchorTargets(spare_regions(labels, anchors[None], objects.regions), matches, objects.boxes)

    def losses(
        self, objectness: Tensor, deltas: Tensor, anchors: Tensor, targets: "AnchorTargets"
    ) -> dict[str, Tensor]:
        """Compute both losses (Faster R-CNN, equation 1), averaged over the sampled anchors of the batch."""
        positive, negative, _ = self.sampler(targets.labels)
        image_ids = positive // len(anchors)
        matched_boxes = targets.objects[image_ids, targets.matches.flatten()[positive]]
        regression_targets = self.box_coder.encode(matched_boxes, anchors[positive % len(anchors)])
        sampled = torch.cat((positive, negative))
        if len(sampled) == 0:  # images without objects that ignore regions fill
            return {"loss_objectness": objectness.sum() * 0, "loss_rpn_box_reg": deltas.sum() * 0}
        is_object = torch.zeros(len(sampled), dtype=objectness.dtype, device=sampled.device)
        is_object[: len(positive)] = 1
        loss_box = F.smooth_l1_loss(deltas.flatten(0, 1)[positive], regression_targets, beta=1 / 9, reduction="sum")
        return {
            "loss_objectness": F.binary_cross_entropy_with_logits(objectness.flatten()[sampled], is_object),
            "loss_rpn_box_reg": loss_box / len(sampled),
        }


class AnchorTargets(NamedTuple):
    """Training targets of each anchor."""

    labels: Tensor  # int64 [B, A], 1 object, 0 background, -1 ignored
    matches: Tensor  # int64 [B, A], the index of its object in the image; valid where its label is 1
    objects: Tensor  # [B, N, 4], the boxes of the objects, padded


def per_anchor(prediction: Tensor, values: int) -> Tensor:
    """[B, A * values, H, W] -> [B, H * W * A, values], in the order of the anchors."""
    batch, _, height, width = prediction.shape
    return prediction.permute(0, 2, 3, 1).reshape(batch, height * width * (prediction.shape[1] // values), values)
