"""Which anchor or proposal belongs to which object, and which of them a training step looks at.

Faster R-CNN (arXiv:1506.01497), section 3.1.2 (positive and negative anchors, sampled mini-batches).
"""
import torch
from torch import Tensor

BELOW_THRESHOLD = -1
BETWEEN_THRESHOLDS = -2


class Matcher:
    """Gives each candidate box the object that it overlaps most, or none.

    Args:
        high_threshold: IoU from which on a candidate is matched.
        low_threshold: IoU below which it is background; between the two it is neither.
        allow_low_quality_matches: also match, for each object, the candidates that overlap it most, however
            little that is, so that no object goes without one (condition (i) of the paper, for anchors).
    """

    def __init__(self, high_threshold: float, low_threshold: float, allow_low_quality_matches: bool):
        if low_threshold > high_threshold:
            raise ValueError(f"low_threshold {low_threshold} is above high_threshold {high_threshold}")
        self.high_threshold = high_threshold
        self.low_threshold = low_threshold
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, iou: Tensor) -> Tensor:
        """IoU [objects, candidates] -> int64 [candidates]: an object's index, BELOW_ or BETWEEN_THRESHOLDS.

        An image without objects makes every candidate background.
        """
        if iou.shape[0] == 0:
            return torch.full((iou.shape[1],), BELOW_THRESHOLD, dtype=torch.int64, device=iou.device)
        best_iou, best_object = iou.max(dim=0)
        matches = best_object.clone()
        matches[best_iou < self.high_threshold] = BETWEEN_THRESHOLDS
        matches[best_iou < self.low_threshold] = BELOW_THRESHOLD
        if self.allow_low_quality_matches:
            best_of_object = iou.max(dim=1, keepdim=True).values
            is_best_of_some = (iou == best_of_object).any(dim=0)
            matches = torch.where(is_best_of_some, best_object, matches)
        return matches


class BalancedSampler:
    """Draws a fixed number of candidates an image, at most a given fraction of them positive.

    The draws (two `torch.randperm` an image, positives first) follow torchvision's, so that one RNG state
    gives one sample in both.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float):
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction

    def __call__(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Labels [candidates] (>= 1 positive, 0 negative, below 0 neither) -> sampled positives and negatives.

        Returns:
            Two int64 tensors of indices, each ascending.
        """
        positive = torch.where(labels >= 1)[0]
        negative = torch.where(labels == 0)[0]
        num_positive = min(len(positive), int(self.batch_size_per_image * self.positive_fraction))
        num_negative = min(len(negative), self.batch_size_per_image - num_positive)
        chosen_positive = torch.randperm(len(positive), device=labels.device)[:num_positive]
        chosen_negative = torch.randperm(len(negative), device=labels.device)[:num_negative]
        return positive[chosen_positive].sort().values, negative[chosen_negative].sort().values
