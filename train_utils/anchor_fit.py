"""Measure which objects of a dataset are so small, large or slender that no anchor fits them."""

import numpy as np
import torch

from dataset_files.dataset import InstanceDataset
from network_files.anchors import AnchorGenerator, best_anchor_ious

FITS = 0.5  # IoU
MOST_IMAGES = 1000  # sampled at regular intervals


def anchor_fit(dataset: InstanceDataset, generator: AnchorGenerator, min_size: int, max_size: int) -> str | None:
    """Describe how well the anchors fit the objects at the network's input size; None if there are no objects."""
    number, ious, sides = len(dataset), [torch.zeros(0)], [torch.zeros(0)]
    for i in np.unique(np.linspace(0, number - 1, min(number, MOST_IMAGES)).round().astype(int)).tolist():
        size = dataset.get_height_and_width(i)
        scale = min(min_size / min(size), max_size / max(size))
        boxes = dataset.boxes(i) * scale
        ious.append(best_anchor_ious(boxes, (max(int(size[0] * scale), 1), max(int(size[1] * scale), 1)), generator))
        sides.append((boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt())
    best, lengths = torch.cat(ious), torch.cat(sides)
    if not len(best):
        return None
    smallest, middle = torch.quantile(lengths[:: 1 + len(lengths) // 2**24], torch.tensor([0.1, 0.5])).tolist()
    missed = int((best < FITS).sum())
    return (
        f"at --min-size {min_size}, {missed} of {len(best)} objects ({missed / len(best):.1%}) have no anchor with an "
        f"IoU of {FITS}; a tenth of all objects are below {smallest:.0f} x {smallest:.0f} px there, half below "
        f"{middle:.0f} x {middle:.0f}"
    )
