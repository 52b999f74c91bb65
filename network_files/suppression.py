"""Apply NMS to many sets of boxes at once, one per row. torchvision's operator would wait for the device at each."""

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from network_files.boxes import padded, pairwise_iou

ROUNDS = 24  # between two checks by the host; the longest chains of untrained proposals need more than 12
MOST_IN_ROWS = 4096  # boxes per image; all pairs of more would take too much memory
PAIRS_AT_ONCE = 2**24  # pairs of boxes; computing their IoU takes 12 bytes per pair


def nms_of_images(
    boxes: Tensor, scores: Tensor, groups: Tensor, usable: Tensor, threshold: float
) -> tuple[Tensor, list[int]]:
    """Apply NMS with the IoU `threshold` to the usable boxes of each image, separately for each group.

    Boxes are [B, n, 4]; scores, groups (int64) and usable (bool) are [B, n]. Returns int64 [B, m], the indices of each
    image's kept boxes, best first, and then of others. Also returns the number of kept boxes per image.
    """
    if boxes.device.type != "cpu" and boxes.shape[1] <= MOST_IN_ROWS:
        return nms_at_once(boxes, scores, groups, usable, threshold)
    kept = []
    for own, s, g, use in zip(boxes, scores, groups, (torch.where(row)[0] for row in usable)):
        kept.append(use[batched_nms(own[use], s[use], g[use], threshold)])
    counts = [len(indices) for indices in kept]
    return padded(torch.cat(kept), counts=counts)[0][0], counts


def nms_at_once(
    boxes: Tensor, scores: Tensor, groups: Tensor, usable: Tensor, threshold: float
) -> tuple[Tensor, list[int]]:
    ranks = torch.where(usable, scores, -1.0).sort(dim=1, descending=True, stable=True).indices
    ranked = boxes.gather(1, ranks[..., None].expand(-1, -1, 4)), usable.gather(1, ranks)
    kept, counts = nms_of_rows(*ranked, threshold, groups.gather(1, ranks))
    return ranks.gather(1, kept.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices), counts


def nms_of_rows(
    boxes: Tensor, usable: Tensor, threshold: float, groups: Tensor | None = None
) -> tuple[Tensor, list[int]]:
    """Apply NMS to each row: drop a box if its IoU with a kept box before it in the row exceeds `threshold`.

    This is exact. A box is decided once all better boxes that overlap it are decided. So each round decides at least
    one more box in every chain of overlapping boxes. Once a round changes nothing, all boxes are decided.

    Args:
        boxes: float [R, n, 4], the best of each row first; usable: bool [R, n], the others are dropped first.
        groups: int64 [R, n]; only boxes of the same group suppress one another. None: all boxes of a row do.

    Returns:
        bool [R, n], which boxes are kept; and their number per row.
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
