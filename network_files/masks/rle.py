"""Convert between COCO run-length codes and crops of masks, without a full-size mask in between.

A code holds run lengths, zeros first, down the columns from left to right; COCO packs them into characters of six bits.
All codes of an image are packed and unpacked together, since most are too short to be worth a call each.
"""

from collections.abc import Sequence

import numpy as np

TOGETHER = 16  # codes decoded at once; more would save little time and cost memory
MOST_PIXELS = 1 << 28  # per image; a code of a few characters can claim any size
LONGEST = 6  # characters per number: 30 bits, which hold any run of such an image and its sign


def encode_crop(crop: np.ndarray, left: int, top: int, height: int, width: int) -> dict:
    """Encode a mask [height, width], given as its bool crop at (left, top), as a code whose counts are a list."""
    if crop.shape[0] < height:
        # A zero below the crop ends the last run of each column. A crop as high as the image needs none: there, a run
        # continues in the next column.
        crop = np.pad(crop, ((0, 1), (0, 0)))
    changes = np.flatnonzero(np.diff(crop.T.reshape(-1), prepend=False, append=False))
    columns, rows = np.divmod(changes, max(crop.shape[0], 1))
    positions = (left + columns) * height + top + rows
    positions = positions[positions < height * width]
    counts = np.diff(positions, prepend=0, append=height * width).tolist()
    return {"size": [height, width], "counts": counts}


def compress(codes: list[dict]) -> list[dict]:
    """Convert codes whose counts are lists to codes whose counts are COCO's packed bytes."""
    counts = [np.array(code["counts"], dtype=np.int64) for code in codes]
    lengths = np.array([len(each) for each in counts], dtype=np.int64)
    packed = pack_counts(np.concatenate([*counts, lengths[:0]]), lengths)
    return [{"size": list(code["size"]), "counts": each} for code, each in zip(codes, packed)]


def pack_counts(counts: np.ndarray, lengths: np.ndarray) -> list[bytes]:
    """Pack concatenated run lengths, int64 [S], of N codes; `lengths` [N] is the number of runs per code."""
    starts = lengths.cumsum() - lengths
    within = np.arange(len(counts)) - np.repeat(starts, lengths)
    later = np.flatnonzero(within > 2)
    numbers = counts.copy()
    numbers[later] -= counts[later - 2]

    magnitudes = np.where(numbers < 0, ~numbers, numbers)
    sizes = np.ones(len(numbers), dtype=np.int64)
    limit = 16
    while (larger := magnitudes >= limit).any():
        sizes += larger
        limit *= 32
    ends = sizes.cumsum()
    characters = np.empty(ends[-1] if len(ends) else 0, dtype=np.uint8)
    for place in range(sizes.max(initial=0)):
        chosen = np.flatnonzero(sizes > place)
        more = sizes[chosen] > place + 1
        five_bits = (numbers[chosen] >> (5 * place)) & 0x1F
        characters[ends[chosen] - sizes[chosen] + place] = five_bits + 0x20 * more + 48
    packed, borders = characters.tobytes(), np.concatenate(([0], ends))[np.append(starts, len(counts))].tolist()
    return [packed[start:end] for start, end in zip(borders, borders[1:])]


def unpack_all(packed: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Unpack the counts of N codes to concatenated run lengths, int64 [S], and the number of runs per code, [N].

    A number is a group of characters with five bits each, lowest first. The sixth bit is set on all but the last
    character, and the fifth bit of the last character is the sign. From the fourth number on, the difference to the
    number two places before is stored. ValueError if the packed counts are invalid.
    """
    if not are_packed_codes(packed).all():
        raise ValueError("has invalid run-length counts")
    characters = np.frombuffer(b"".join(packed), dtype=np.uint8).astype(np.int64) - 48
    is_last = (characters & 0x20) == 0
    ends = np.cumsum([len(counts) for counts in packed], dtype=np.int64)
    starts = np.flatnonzero(np.concatenate(([True], is_last[:-1])))[: len(characters)]
    sizes = np.diff(starts, append=len(characters))
    place = np.arange(len(characters)) - np.repeat(starts, sizes)
    numbers = np.add.reduceat((characters & 0x1F) << (5 * place), starts) if len(starts) else characters
    negative = (characters[starts + sizes - 1] & 0x10) != 0
    numbers = numbers - np.where(negative, 1 << (5 * sizes), 0)

    code_ends = np.searchsorted(starts, ends)
    lengths = np.diff(code_ends, prepend=0)
    within = np.arange(len(numbers)) - np.repeat(code_ends - lengths, lengths)
    for chosen in (np.flatnonzero(within % 2 == 1), np.flatnonzero((within % 2 == 0) & (within > 0))):
        sums = numbers[chosen].cumsum()
        before = np.concatenate(([0], sums))[np.searchsorted(chosen, code_ends - lengths)]
        numbers[chosen] = sums - np.repeat(before, np.diff(np.searchsorted(chosen, code_ends), prepend=0))
    return numbers, lengths


def are_packed_codes(packed: Sequence[bytes]) -> np.ndarray:
    """Return which packed counts have valid characters, bool [N]: COCO's 64, with at most six per number."""
    characters = np.frombuffer(b"".join(packed), dtype=np.uint8).astype(np.int64) - 48
    lengths = np.array([len(counts) for counts in packed], dtype=np.int64)
    is_last = (characters & 0x20) == 0
    flawed = (characters < 0) | (characters > 63)
    ends = lengths[lengths > 0].cumsum() - 1
    flawed[ends] |= ~is_last[ends]
    is_last[ends] = True
    numbers = np.flatnonzero(is_last)
    flawed[numbers] |= np.diff(numbers, prepend=-1) > LONGEST
    valid = np.ones(len(packed), dtype=bool)
    valid[np.repeat(np.arange(len(packed)), lengths)[flawed]] = False
    return valid


def decode_crops(codes: Sequence[dict]) -> list[tuple[int, int, np.ndarray]]:
    """Return the smallest crop of each packed code of one image: left, top and uint8 pixels [h, w]."""
    groups = (codes[i : i + TOGETHER] for i in range(0, len(codes), TOGETHER))
    return [crop for group in groups for crop in decode_together(group)]


def decode_together(codes: Sequence[dict]) -> list[tuple[int, int, np.ndarray]]:
    height, width = codes[0]["size"]
    if not 0 < height * width <= MOST_PIXELS:
        raise ValueError(f"has the size {height} x {width}, which is empty or above {MOST_PIXELS} pixels")
    packed = [counts.encode() if isinstance(counts, str) else counts for counts in (c["counts"] for c in codes)]
    counts, lengths = unpack_all(packed)
    if counts.min(initial=0) < 0:
        raise ValueError("has negative run lengths")
    ends, code_ends = counts.cumsum(), lengths.cumsum()
    plane_ends = np.concatenate(([0], ends))[code_ends]
    if not np.array_equal(plane_ends, np.arange(1, len(codes) + 1) * (height * width)):
        raise ValueError(f"has run lengths that do not add up to its image, {height} x {width}")

    # Only the crop's columns of each mask are laid out, at full height, one mask after the other.
    boxes = boxes_of_runs(counts, lengths, height, width)
    first = np.arange(len(codes)) * (height * width) + boxes[:, 0] * height
    areas = boxes[:, 2] * height
    shift = areas.cumsum() - areas - first
    ends = ends.clip(np.repeat(first, lengths), np.repeat(first + areas, lengths)) + np.repeat(shift, lengths)
    is_object = (np.arange(len(ends)) - np.repeat(code_ends - lengths, lengths)) % 2 == 1
    columns = np.repeat(is_object.view(np.uint8), np.diff(ends, prepend=0))

    crops = []
    for start, (left, top, crop_width, crop_height) in zip((first + shift).tolist(), boxes.tolist()):
        strip = columns[start : start + crop_width * height].reshape(crop_width, height)
        crops.append((left, top, np.ascontiguousarray(strip[:, top : top + crop_height].T)))
    return crops


def boxes_of_runs(
    counts: np.ndarray, lengths: np.ndarray, height: int | np.ndarray, width: int | np.ndarray
) -> np.ndarray:
    """Return left, top, width and height of each code's set pixels, int64 [N, 4]; zeros for empty masks.

    Runs are as `unpack_all` returns them, and the runs of each code add up to `height * width`. Height and width are
    one value for all codes, or one per code.
    """
    heights = np.broadcast_to(height, len(lengths))
    planes = heights * width
    owners = np.repeat(np.arange(len(lengths)), lengths)
    is_object = (np.arange(len(counts)) - np.repeat(lengths.cumsum() - lengths, lengths)) % 2 == 1
    chosen = np.flatnonzero(is_object & (counts > 0))
    boxes = np.zeros((len(lengths), 4), dtype=np.int64)
    if len(chosen) == 0:
        return boxes
    owners = owners[chosen]
    ends = counts.cumsum()[chosen] - (planes.cumsum() - planes)[owners]
    height = heights[owners]
    (left, top), (right, bottom) = np.divmod(ends - counts[chosen], height), np.divmod(ends - 1, height)
    several = left < right  # a run over several columns touches the first and the last row
    top, bottom = np.where(several, 0, top), np.where(several, height - 1, bottom)
    firsts = np.flatnonzero(np.diff(owners, prepend=-1))
    left, top = (np.minimum.reduceat(values, firsts) for values in (left, top))
    right, bottom = (np.maximum.reduceat(values, firsts) for values in (right, bottom))
    boxes[owners[firsts]] = np.stack((left, top, right - left + 1, bottom - top + 1), axis=1)
    return boxes
