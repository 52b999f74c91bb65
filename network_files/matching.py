"""Match anchors or proposals to objects, and sample those that a training step learns from.

Faster R-CNN (arXiv:1506.01497), sections 3.1.2 (positive and negative anchors) and 3.1.3 (sampled mini-batches);
for proposals Fast R-CNN (arXiv:1504.08083), section 2.3.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from network_files.on_device import running_counts

BELOW_THRESHOLD = -1
BETWEEN_THRESHOLDS = -2


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
        self.high_threshold = high_threshold
        self.low_threshold = low_threshold
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, iou: Tensor) -> Tensor:
        """IoU [objects, candidates] -> int64 [candidates]: an object's index, BELOW_ or BETWEEN_THRESHOLDS.

        In an image without objects every candidate is background.
        """
        if iou.shape[0] == 0:
            return torch.full((iou.shape[1],), BELOW_THRESHOLD, dtype=torch.int64, device=iou.device)
        best_iou, best_object = iou.max(dim=0)
        matches = best_object.masked_fill(best_iou < self.high_threshold, BETWEEN_THRESHOLDS)
        matches = matches.masked_fill(best_iou < self.low_threshold, BELOW_THRESHOLD)
        if self.allow_low_quality_matches:
            best_of_object = iou.max(dim=1, keepdim=True).values
            is_best_of_some = (iou == best_of_object).any(dim=0)
            matches = torch.where(is_best_of_some, best_object, matches)
        return matches


class BalancedSampler:
    """Sample a fixed number of candidates per image, at most a given fraction of them positive.

    The draws (two `torch.randperm` per image, positives first) are torchvision's, so that the same RNG state gives
    the same sample. On a device there is one wait for all images, for the number of positives and negatives of each.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float):
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction

    def __call__(self, labels: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Labels [candidates] per image (>= 1 positive, 0 negative, < 0 ignored) -> sampled positives and negatives.

        Returns:
            Per image two int64 tensors of indices, each ascending.
        """
        padded = pad_sequence(list(labels), batch_first=True, padding_value=-1)
        running, totals = running_counts(torch.stack((padded >= 1, padded == 0), dim=1).flatten(0, 1))
        samples = []
        for i in range(len(labels)):
            positives, negatives = totals[2 * i : 2 * i + 2]
            num_positive = min(positives, int(self.batch_size_per_image * self.positive_fraction))
            num_negative = min(negatives, self.batch_size_per_image - num_positive)
            samples.append(
                (draw(running[2 * i], positives, num_positive), draw(running[2 * i + 1], negatives, num_negative))
            )
        return samples


def draw(running: Tensor, total: int, number: int) -> Tensor:
    """Draw indices of that many true entries of a row, int64 [number] ascending; `running` as in `running_counts`."""
    chosen = torch.randperm(total, device=running.device)[:number].sort().values
    return torch.searchsorted(running, chosen + 1)
