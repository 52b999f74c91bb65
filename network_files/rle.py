"""COCO run-length codes and crops of masks, one into the other, without the full-size plane between.

A code holds run lengths, zeros first, down the columns from left to right; COCO packs them six bits a character.
"""
import numpy as np
from pycocotools import mask as coco_mask


def encode_crop(crop: np.ndarray, left: int, top: int, height: int, width: int) -> dict:
    """The uncompressed code of a picture [height, width] that is zero but for the bool `crop` [h, w] at (left, top).

    Returns:
        {"size": [height, width], "counts": list of int}; `compress` packs it.
    """
    if crop.shape[0] < height:
        # One zero below the crop ends every column's last run. A crop as high as the picture needs none: there a
        # run goes on in the next column.
        crop = np.pad(crop, ((0, 1), (0, 0)))
    changes = np.flatnonzero(np.diff(crop.T.reshape(-1), prepend=False, append=False))
    columns, rows = np.divmod(changes, max(crop.shape[0], 1))
    positions = (left + columns) * height + top + rows
    positions = positions[positions < height * width]
    counts = np.diff(positions, prepend=0, append=height * width).tolist()
    return {"size": [height, width], "counts": counts}


def compress(codes: list[dict]) -> list[dict]:
    """Uncompressed codes -> codes whose counts are COCO's packed bytes."""
    return [coco_mask.frPyObjects(code, *code["size"]) for code in codes]


def decode_crop(code: dict) -> tuple[int, int, np.ndarray]:
    """Left, top and the uint8 pixels [h, w] of the smallest crop that holds every set pixel of a packed code."""
    height = code["size"][0]
    left, top, crop_width, crop_height = (int(v) for v in coco_mask.toBbox(code))
    if crop_width == 0 or crop_height == 0:
        return 0, 0, np.zeros((0, 0), dtype=np.uint8)
    counts = code["counts"]
    ends = unpack_counts(counts.encode() if isinstance(counts, str) else counts).cumsum()
    ends = (ends - left * height).clip(0, crop_width * height)
    runs = np.diff(ends, prepend=0)
    columns = np.repeat(np.arange(len(runs), dtype=np.uint8) & 1, runs).reshape(crop_width, height)
    return left, top, np.ascontiguousarray(columns[:, top : top + crop_height].T)


def unpack_counts(packed: bytes) -> np.ndarray:
    """COCO's packed counts -> run lengths, int64.

    A number is a group of characters with five bits each, lowest first, the sixth bit set on all but the last; the
    fifth bit of the last is the sign. From the fourth number on, the difference to the last but one is stored.
    """
    characters = np.frombuffer(packed, dtype=np.uint8).astype(np.int64) - 48
    is_last = (characters & 0x20) == 0
    starts = np.flatnonzero(np.concatenate(([True], is_last[:-1])))
    lengths = np.diff(starts, append=len(characters))
    place = np.arange(len(characters)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((characters & 0x1F) << (5 * place), starts)
    negative = (characters[starts + lengths - 1] & 0x10) != 0
    numbers = numbers - np.where(negative, 1 << (5 * lengths), 0)
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers
