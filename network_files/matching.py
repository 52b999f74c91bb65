"""Match anchors or proposals to objects, and sample those that a training step learns from.

Faster R-CNN (arXiv:1506.01497), sections 3.1.2 (positive and negative anchors) and 3.1.3 (sampled mini-batches);
for proposals Fast R-CNN (arXiv:1504.08083), section 2.3. All images of a batch are processed together, padded to the
largest number of objects and candidates.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from network_files.boxes import padded, pairwise_iou
from network_files.ignore_regions import integral_image
from network_files.masks.instance_masks import InstanceMasks
from network_files.on_device import upload

BELOW_THRESHOLD = -1
BETWEEN_THRESHOLDS = -2
PAIRS_AT_ONCE = 2**24  # pairs of object and candidate; computing their IoU takes 12 bytes per pair


class Objects(NamedTuple):
    """The objects of a batch on the device, padded to the largest number per image."""

    boxes: Tensor  # float [B, N, 4], x1y1x2y2 in pixels of the resized images
    labels: Tensor  # int64 [B, N]
    counts: Tensor  # int64 [B], the number of objects per image
    masks: list[InstanceMasks]  # per image, on the host until the mask targets are computed
    has_mask: Tensor | None = None  # bool [B, N], objects that the mask loss counts; None: all
    # Per image, the `integral_image` of its ignore regions, or None; empty if no image has any.
    regions: Sequence[Tensor | None] = ()

    @classmethod
    def of(cls, targets: Sequence[dict], device: torch.device) -> "Objects":
        """Pad the targets of the images, and upload them without waiting for the device."""
        boxes, labels = (upload(torch.cat([t[key] for t in targets]), device) for key in ("boxes", "labels"))
        numbers = [len(t["labels"]) for t in targets]
        (boxes, labels), counts = padded(boxes, labels, counts=numbers)
        objects = cls(boxes, labels, counts, [t["masks"] for t in targets])
        if any("has_mask" in t for t in targets):
            flags = [t.get("has_mask", torch.ones(number, dtype=torch.bool)) for t, number in zip(targets, numbers)]
            (has_mask,), _ = padded(upload(torch.cat(flags), device), counts=numbers)
            objects = objects._replace(has_mask=has_mask)
        regions = [t["ignore_regions"] if len(t.get("ignore_regions", ())) else None for t in targets]
        return objects._replace(regions=[r if r is None else integral_image(r, device) for r in regions])


class Matcher:
    """Assign each candidate box to the object that it overlaps most, or to none.

    Args:
        high_threshold: a candidate is matched from this IoU on.
        low_threshold: a candidate is background below this IoU; between the two it is ignored.
        allow_low_quality_matches: also match the candidates with the highest IoU of each object, however low it is,
            so that every object has one (condition (i) of Faster R-CNN, for anchors).
    """

    def __init__(self, high_threshold: float, low_threshold: float, allow_low_quality_matches: bool):
        if low_threshold > high_threshold:
            raise ValueError(f"low_threshold {low_threshold} is above high_threshold {high_threshold}")
        self.high_threshold, self.low_threshold = high_threshold, low_threshold
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, objects: Tensor, counts: Tensor, candidates: Tensor) -> Tensor:
        """Match candidates to the objects that they overlap, in each image of the batch.

        Candidates are [B, A, 4], or [1, A, 4] for all images, and objects [B, N, 4], padded from `counts`; all are
        x1y1x2y2. Returns int64 [B, A]: an object's index in its image, BELOW_THRESHOLD or BETWEEN_THRESHOLDS.
        """
        shape = (len(objects), candidates.shape[1])
        best_iou = candidates.new_full(shape, -1.0)
        best_object = torch.zeros(shape, dtype=torch.int64, device=candidates.device)
        is_best_of_some = torch.zeros_like(best_object, dtype=torch.bool)
        # A few objects at a time: the IoUs of all would take gigabytes.
        at_once = max(1, PAIRS_AT_ONCE // max(best_iou.numel(), 1))
        for first in range(0, objects.shape[1], at_once):
            chunk = objects[:, first : first + at_once]
            padding = torch.arange(first, first + chunk.shape[1], device=counts.device) >= counts[:, None]
            iou = pairwise_iou(chunk, candidates).masked_fill_(padding[..., None], -1.0)
            found = iou.max(dim=1)
            better = found.values > best_iou  # of equal IoUs, the first object wins
            best_iou = torch.where(better, found.values, best_iou)
            best_object = torch.where(better, found.indices + first, best_object)
            if self.allow_low_quality_matches:
                best_of_object = iou.amax(dim=2).masked_fill_(padding, 2.0)  # padding equals no IoU
                is_best_of_some |= (iou == best_of_object[..., None]).any(dim=1)
        matches = best_object.masked_fill(best_iou < self.high_threshold, BETWEEN_THRESHOLDS)
        matches = matches.masked_fill(best_iou < self.low_threshold, BELOW_THRESHOLD)
        return torch.where(is_best_of_some, best_object, matches) if self.allow_low_quality_matches else matches


class Sample(NamedTuple):
    """The candidates that a batch is trained on, as indices into the flattened labels, [B, A] -> [B * A]."""

    positive: Tensor  # int64 [P], ascending
    negative: Tensor  # int64 [N], ascending
    numbers: list[tuple[int, int]]  # per image, the numbers of positive and of negative candidates


class BalancedSampler:
    """Sample a fixed number of candidates per image, at most a given fraction of them positive.

    The draws (two `torch.randperm` per image, positives first) are torchvision's, so that the same RNG state gives
    the same sample. On a device there is one wait for all images, for the numbers of positives and negatives.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float):
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction

    def __call__(self, labels: Tensor) -> Sample:
        """Sample by labels [B, A]: above 0 is positive, 0 negative, below 0 ignored."""
        masks = torch.stack((labels >= 1, labels == 0))
        running = masks.flatten().cumsum(0)  # numbers the positives of all images, and then the negatives
        totals: list[list[int]] = masks.sum(dim=2).tolist()
        numbers = []
        for positives, negatives in zip(*totals):
            positive = min(positives, int(self.batch_size_per_image * self.positive_fraction))
            numbers.append((positive, min(negatives, self.batch_size_per_image - positive)))
        drawn = [
            [torch.randperm(total, device=labels.device)[:number] for total, number in zip(pair, wanted)]
            for pair, wanted in zip(zip(*totals), numbers)
        ]
        lengths = torch.tensor(numbers, dtype=torch.int64).reshape(-1, 2).T.flatten()
        ends = torch.tensor(totals, dtype=torch.int64).flatten().cumsum(0)
        before = ends.roll(1).index_fill(0, torch.tensor([0]), 0).repeat_interleave(lengths)
        drawn_numbers = torch.cat([pair[kind] for kind in (0, 1) for pair in drawn])
        # The k-th true entry is the first at which the running count reaches k.
        chosen = torch.searchsorted(running, (drawn_numbers + upload(before + 1, labels.device)).sort().values)
        positive, negative = chosen.split([sum(n) for n in zip(*numbers)])
        return Sample(positive, negative - labels.numel(), numbers)
