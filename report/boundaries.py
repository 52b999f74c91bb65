"""Compute boundary AP (Cheng et al., CVPR 2021): like mask AP, but IoU is the smaller of mask IoU and boundary IoU.

The boundary of a mask consists of its pixels within 2 % of the image's diagonal from its outline, measured as steps to
any of eight neighbours; beyond the image's border there is no object. A large mask with a coarse outline has a high
mask IoU and a low boundary IoU.
"""

from collections.abc import Sequence

import numpy as np

from network_files.masks.rle import compress, decode_crops, encode_crop
from train_utils.visual.drawing import mask_contour

DILATION = 0.02  # of the image's diagonal


def boundary_codes(codes: Sequence[dict]) -> list[dict]:
    """Convert the run-length codes of one image's masks to run-length codes of the masks' boundaries."""
    if not codes:
        return []
    height, width = codes[0]["size"]
    steps = max(round(DILATION * float(np.hypot(height, width))), 1)
    crops = ((left, top, mask_contour(crop.astype(bool), steps)) for left, top, crop in decode_crops(codes))
    return compress([encode_crop(contour, left, top, height, width) for left, top, contour in crops])
