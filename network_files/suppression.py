"""Non-maximum suppression of many rows of boxes at once, on a device with one wait for all of them.

The operator of torchvision treats one set of boxes in one block of a GPU, box after box, and the host waits for each.
"""

import torch
from torch import Tensor

from network_files.boxes import pairwise_iou
from network_files.on_device import nms_per_group, true_indices

ROUNDS = 24  # between two looks of the host; untrained proposals, in their longest chains, need more than 12
MOST_IN_ROWS = 4096  # boxes; all pairs of more would take too much memory
PAIRS_AT_ONCE = 2**24  # of boxes; their IoU takes 12 bytes each for a moment


def nms_of_images(boxes: Tensor, scores: Tensor, groups: Tensor, usable: Tensor, threshold: float) -> list[Tensor]:
    """Suppress boxes [B, n, 4] with an IoU above `threshold` with a better usable one of their image and group.

    Args:
        scores: [B, n]; groups: int64 [B, n]; usable: bool [B, n].

    Returns:
        Of each image int64, the indices of the boxes that are kept, best first.
    """
    if boxes.device.type == "cpu" or boxes.shape[1] > MOST_IN_ROWS:
        each = zip(true_indices(usable), boxes, scores, groups)
        return [use[nms_per_group(b[use], s[use], g[use], threshold)] for use, b, s, g in each]
    return nms_at_once(boxes, scores, groups, usable, threshold)


def nms_at_once(boxes: Tensor, scores: Tensor, groups: Tensor, usable: Tensor, threshold: float) -> list[Tensor]:
    """`nms_of_images` with one wait."""
    ranks = torch.where(usable, scores, -1.0).sort(dim=1, descending=True, stable=True).indices
    ranked = boxes.gather(1, ranks[..., None].expand(-1, -1, 4)), usable.gather(1, ranks)
    kept, counts = nms_of_rows(*ranked, threshold, groups.gather(1, ranks))
    best = ranks.gather(1, kept.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices)
    return [indices[:count] for indices, count in zip(best, counts)]


def nms_of_rows(
    boxes: Tensor, usable: Tensor, threshold: float, groups: Tensor | None = None
) -> tuple[Tensor, list[int]]:
    """Suppress in each row every box that has an IoU above `threshold` with a better one that is kept.

    This is exact. A box is decided once all better ones that overlap it are: each round decides at least one more link
    of every chain of overlapping boxes, and nothing changes any more when all are decided.

    Args:
        boxes: float [R, n, 4], the best of each row first; usable: bool [R, n], the others neither stay nor suppress.
        groups: int64 [R, n]; only boxes of the same group suppress one another. None: all of a row.

    Returns:
        bool [R, n], the boxes that are kept; and how many those of each row are.
    """
    rows, length = usable.shape
    suppresses = torch.empty((rows, length, length), dtype=torch.bool, device=boxes.device)  # [.., i, j]: j drops i
    at_once = max(1, PAIRS_AT_ONCE // max(rows * length, 1))
    for first in range(0, length, at_once):
        part = slice(first, first + at_once)
        suppresses[:, part] = pairwise_iou(boxes[:, part], boxes) > threshold
        if groups is not None:
            suppresses[:, part] &= groups[:, part, None] == groups[:, None]
    suppresses.tril_(diagonal=-1)
    kept, decided = usable, False
    while not decided:
        for _ in range(ROUNDS):
            before, kept = kept, usable > (suppresses & kept[:, None]).any(dim=2)
        *counts, decided = torch.cat((kept.sum(dim=1), (kept == before).all()[None])).tolist()
    return kept, counts
