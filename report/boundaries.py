"""Compute boundary AP (Cheng et al., CVPR 2021): like mask AP, but IoU is the smaller of mask IoU and boundary IoU.

The boundary of a mask are its pixels within 2 % of the image's diagonal from its outline, measured as steps to any of
eight neighbours; beyond the image's border there is no object. A large mask with a coarse outline has a high mask IoU
and a low boundary IoU.
"""

from collections.abc import Sequence

import numpy as np

from network_files.masks.rle import compress, decode_crops, encode_crop

DILATION = 0.02  # of the image's diagonal


def boundary_codes(codes: Sequence[dict]) -> list[dict]:
    """Return the run-length codes of the boundaries of all masks of one image, from crops of the masks."""
    if not codes:
        return []
    height, width = codes[0]["size"]
    steps = max(round(DILATION * float(np.hypot(height, width))), 1)
    crops = decode_crops(codes)
    return compress([encode_crop(boundary(crop, steps), left, top, height, width) for left, top, crop in crops])


def boundary(mask: np.ndarray, steps: int) -> np.ndarray:
    """Return the pixels of a mask, uint8 [h, w], from which `steps` steps to neighbours lead out of it, bool [h, w]."""
    found = mask.astype(bool)
    side = 2 * steps + 1
    if min(mask.shape) < side:
        return found
    # A pixel is inside if the square of this side around it is full, which the sums of all rectangles say.
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), dtype=np.int32)
    sums[1:, 1:] = mask.cumsum(axis=0, dtype=np.int32).cumsum(axis=1)
    full = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side] == side * side
    found[steps:-steps, steps:-steps] &= ~full
    return found
