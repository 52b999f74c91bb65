"""Instance masks of one image, each stored as a crop, so that no full-size mask exists between dataset and targets.

The crops of a photo with 100 objects take a few hundred kilobytes; dense masks would take 30 MB.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from network_files.boxes import size_of

Crop = tuple[int, int, np.ndarray]  # left, top and the uint8 pixels [h, w] of a mask


class InstanceMasks:
    """N binary masks in the frame of one image.

    The pixels stay as the dataset made them: `resize` only records the new frame, and reading looks up the nearest
    source pixel. The result equals dense masks resized by nearest neighbour.

    Attributes:
        pixels: uint8 [S], the crops one after the other, each row by row; 1 is the object.
        crops: int64 [N, 4], left, top, width, height of each crop in pixels of the source image.
        source_size: height and width of the image that the crops were made for.
        size: height and width of the current frame.
        content_size: height and width of the image within the frame, at its upper left; the rest is padding.
    """

    def __init__(
        self, pixels: Tensor, crops: Tensor, source_size: tuple[int, int], size: tuple[int, int] | None = None,
        content_size: tuple[int, int] | None = None,
    ):  # fmt: skip
        if crops.ndim != 2 or crops.shape[1] != 4:
            raise ValueError(f"crops must be [N, 4] (left, top, width, height), got {list(crops.shape)}")
        self.pixels = pixels
        self.crops = crops
        self.source_size = (source_size[0], source_size[1])
        self.size = self.source_size if size is None else (size[0], size[1])
        self.content_size = self.size if content_size is None else (content_size[0], content_size[1])

    @classmethod
    def from_crops(cls, crops: Sequence[Crop], size: tuple[int, int]) -> "InstanceMasks":
        """Build from (left, top, uint8 or bool array [h, w]) per object, all within the image of `size` (H, W)."""
        places = [(left, top, crop.shape[1], crop.shape[0]) for left, top, crop in crops]
        pixels = [np.ascontiguousarray(crop, dtype=np.uint8).reshape(-1) for _, _, crop in crops]
        return cls(
            torch.from_numpy(np.concatenate(pixels)) if pixels else torch.zeros(0, dtype=torch.uint8),
            torch.tensor(places, dtype=torch.int64).reshape(-1, 4),
            size,
        )

    @classmethod
    def from_dense(cls, masks: Tensor) -> "InstanceMasks":
        """Build from dense masks, uint8 or bool [N, H, W], in which nonzero pixels are the object."""
        if masks.ndim != 3 or masks.dtype not in (torch.uint8, torch.bool):
            raise ValueError(f"masks must be uint8 or bool [N, H, W], got {masks.dtype} {list(masks.shape)}")
        crops = [crop_to_content(mask) for mask in (masks != 0).cpu().numpy()]
        return cls.from_crops(crops, size_of(masks))

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: Tensor | Sequence[int] | slice) -> "InstanceMasks":
        """Select masks by a tensor of indices, a boolean tensor, a list or a slice."""
        chosen = torch.arange(len(self))[index].tolist()
        starts = self.starts().tolist()
        parts = [self.pixels[starts[i] : starts[i + 1]] for i in chosen]
        return self.with_storage(torch.cat(parts) if parts else self.pixels[:0], self.crops[chosen])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "InstanceMasks":
        return self.with_storage(*(t.to(device, non_blocking=non_blocking) for t in (self.pixels, self.crops)))

    def pin_memory(self, device: torch.device | str | None = None) -> "InstanceMasks":  # called by a loader
        return self.with_storage(self.pixels.pin_memory(), self.crops.pin_memory())

    def with_storage(self, pixels: Tensor, crops: Tensor) -> "InstanceMasks":
        """Return masks in the same frames, but with the given `pixels` and `crops`."""
        return InstanceMasks(pixels, crops, self.source_size, self.size, self.content_size)

    def __repr__(self) -> str:
        return f"InstanceMasks({len(self)} in {self.size[0]}x{self.size[1]}, {self.pixels.numel()} bytes)"

    def starts(self) -> Tensor:
        """Return where each crop begins in `pixels`, int64 [N + 1]. The last entry is the end of the last crop."""
        areas = self.crops[:, 2] * self.crops[:, 3]
        return F.pad(areas.cumsum(0), (1, 0))

    def all_crops(self) -> list[Crop]:
        """Return left, top and the uint8 pixels [h, w] of each mask in the source frame. The pixels are views."""
        pixels, starts = self.pixels.numpy(), self.starts().tolist()
        return [
            (left, top, pixels[start : start + width * height].reshape(height, width))
            for start, (left, top, width, height) in zip(starts, self.crops.tolist())
        ]

    def resize(self, height: int, width: int, frame: tuple[int, int] | None = None) -> "InstanceMasks":
        """Return the masks at another size (nearest neighbour), padded at the right and bottom to `frame` if given."""
        return InstanceMasks(self.pixels, self.crops, self.source_size, frame or (height, width), (height, width))

    def flip_horizontal(self) -> "InstanceMasks":
        """Mirror left and right; possible only before any `resize`."""
        width, crops = self.size[1], self.source_crops("flip")
        return self.from_crops([(width - x - crop.shape[1], y, crop[:, ::-1]) for x, y, crop in crops], self.size)

    def flip_vertical(self) -> "InstanceMasks":
        """Mirror top and bottom; possible only before any `resize`."""
        height, crops = self.size[0], self.source_crops("flip")
        return self.from_crops([(x, height - y - crop.shape[0], crop[::-1]) for x, y, crop in crops], self.size)

    def window(self, top: int, left: int, height: int, width: int) -> "InstanceMasks":
        """Crop to a window of the image; possible only before any `resize`. Objects outside it become empty."""
        shown = [shown_part(crop, top, left, height, width) for crop in self.source_crops("crop")]
        return self.from_crops(shown, (height, width))

    def in_current_frame(self) -> "InstanceMasks":
        """Return the masks resampled to the current frame, so that flips and crops are possible again."""
        return self.from_crops(self.resampled_crops(), self.size)

    def without(self, covered: np.ndarray) -> "InstanceMasks":
        """Remove the pixels where `covered`, bool [H, W] in the source frame, is True. ValueError after `resize`."""
        left_over = []
        for left, top, crop in self.source_crops("cut"):
            above = covered[top : top + crop.shape[0], left : left + crop.shape[1]]
            x, y, rest = crop_to_content(crop * ~above) if above.any() else (0, 0, crop)
            left_over.append((left + x, top + y, rest))
        return self.from_crops(left_over, self.size)

    def union(self) -> np.ndarray:
        """Return the pixels of the source frame that belong to any of the masks, bool [H, W]."""
        plane = np.zeros(self.source_size, dtype=np.uint8)
        for left, top, crop in self.all_crops():
            plane[top : top + crop.shape[0], left : left + crop.shape[1]] |= crop
        return plane.astype(bool)

    @staticmethod
    def concatenated(first: "InstanceMasks", second: "InstanceMasks") -> "InstanceMasks":
        """Concatenate the masks of two images. ValueError if the frames of the two images differ."""
        frames = [(masks.source_size, masks.size, masks.content_size) for masks in (first, second)]
        if frames[0] != frames[1]:
            raise ValueError(f"masks in different frames cannot be concatenated: {first} and {second}")
        return first.with_storage(torch.cat((first.pixels, second.pixels)), torch.cat((first.crops, second.crops)))

    def source_crops(self, operation: str) -> list[Crop]:
        """Return `all_crops`. ValueError if the masks were resized; the message names the `operation`."""
        if self.size != self.source_size or self.content_size != self.size:
            raise ValueError(f"{operation} before resize: the masks are {self.source_size}, their frame is {self.size}")
        return self.all_crops()

    def extents(self) -> Tensor:
        """Return the boxes x1y1x2y2 around the objects in the source frame, float32 [N, 4]; zeros for empty masks."""
        boxes = np.zeros((len(self), 4), dtype=np.float32)
        for box, (left, top, crop) in zip(boxes, self.all_crops()):
            x, y, content = crop_to_content(crop)
            if content.size:
                box[:] = left + x, top + y, left + x + content.shape[1], top + y + content.shape[0]
        return torch.from_numpy(boxes)

    def areas(self) -> Tensor:
        """Return the area of each object in pixels of the source frame, int64 [N]."""
        sums = F.pad(self.pixels.to(torch.int64).cumsum(0), (1, 0))
        starts = self.starts()
        return sums[starts[1:]] - sums[starts[:-1]]

    def dense(self) -> Tensor:
        """Return the dense masks, uint8 [N, H, W], in the current frame."""
        masks = torch.zeros((len(self), *self.size), dtype=torch.uint8)
        for plane, (left, top, crop) in zip(masks.numpy(), self.resampled_crops()):
            plane[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        return masks

    def resampled_crops(self) -> list[Crop]:
        """Return left, top and the uint8 pixels [h, w] of each mask in the current frame, by nearest neighbour."""
        rows, columns = (indices.numpy() for indices in self.source_indices())
        resampled = []
        for left, top, pixels in self.all_crops():
            y1, y2 = np.searchsorted(rows, (top, top + pixels.shape[0])).clip(0, self.size[0]).tolist()
            x1, x2 = np.searchsorted(columns, (left, left + pixels.shape[1])).clip(0, self.size[1]).tolist()
            resampled.append((x1, y1, pixels[rows[y1:y2] - top][:, columns[x1:x2] - left]))
        return resampled

    def source_indices(self) -> list[Tensor]:
        """Return the nearest source row of each row in the current frame, int64 [H], and the same for columns, [W].

        The indices are those of `F.interpolate`. Padding gets the index after the last.
        """
        indices = []
        for source, content, frame in zip(self.source_size, self.content_size, self.size):
            ramp = torch.arange(source, dtype=torch.float32)[None, None]
            nearest = F.interpolate(ramp, size=content, mode="nearest")[0, 0].to(torch.int64)
            indices.append(F.pad(nearest, (0, frame - content), value=source))
        return indices


def shown_part(crop: Crop, top: int, left: int, height: int, width: int) -> Crop:
    """Return the part of a mask inside a window of the image, as left, top and pixels [h, w] in the window's frame."""
    x, y, pixels = crop[0] - left, crop[1] - top, crop[2]
    if min(x, y) >= 0 and x + pixels.shape[1] <= width and y + pixels.shape[0] <= height:
        return x, y, pixels
    inside = pixels[max(-y, 0) : max(height - y, 0), max(-x, 0) : max(width - x, 0)]
    dx, dy, content = crop_to_content(inside)
    return (max(x, 0) + dx, max(y, 0) + dy, content) if content.size else (0, 0, content)


def crop_to_content(mask: np.ndarray) -> Crop:
    """Crop `mask` [H, W] to its nonzero pixels: left, top and pixels [h, w], or an empty crop if all are zero."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return 0, 0, mask[:0, :0]
    return int(columns[0]), int(rows[0]), mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
