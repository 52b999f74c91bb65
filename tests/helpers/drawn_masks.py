"""Draw random masks, boxes and detections of every kind: holes, parts, borders, boxes beyond the image."""

import torch
import torch.nn.functional as F
from torch import Tensor

HEIGHT, WIDTH = 37, 53


def blobs(count: int, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """Random masks uint8 [count, height, width] of any size and place, with holes and more than one part."""
    masks = torch.zeros(count, height, width, dtype=torch.uint8)
    for mask in masks:
        (y1, y2), (x1, x2) = (sorted(torch.randint(0, side + 1, (2,)).tolist()) for side in (height, width))
        mask[y1:y2, x1:x2] = torch.rand(y2 - y1, x2 - x1) > torch.rand(1).item()
    return masks


def boxes_of_every_kind(height: int, width: int, count: int = 40) -> Tensor:
    """Boxes [M, 4] in a picture: random, on its borders, smaller than a pixel, as large as it, and beyond it."""
    sides = torch.tensor([width, height, width, height], dtype=torch.float32)
    centre, extent = torch.rand(count, 2) * sides[:2], torch.rand(count, 2) * sides[:2] / 2
    random = torch.cat((centre - extent, centre + extent), 1).clamp(min=0).minimum(sides)
    whole = random.round()
    whole[:, 2:] = torch.maximum(whole[:, 2:], whole[:, :2] + 1)
    tiny = torch.cat((centre, centre + 10 ** (torch.rand(count, 2) * 4 - 3)), 1).minimum(sides)
    narrow = torch.stack((random[:, 0], centre[:, 1], random[:, 2], centre[:, 1] + torch.rand(count)), 1)
    borders = random.clone()
    for side in range(4):
        borders[side::4, side] = [0, 0, width, height][side]
    beyond = torch.cat((random, random)) * 2 - torch.tensor([width, height]).repeat(2) / 2
    corners = torch.tensor(
        [[0, 0, width, height], [0, 0, 1, 1], [width - 1, height - 1, width, height], [width, height, width, height],
         [width - 0.25, 0, width, 0.25], [0, 0, 0, 0], [-9, -9, 2 * width, 2 * height], [-9, -9, -5, -5],
         [width + 3, 1, width + 9, 5], [1, height + 3, 5, height + 9], [-1, -1, 0, 0], [-3, 2, -2, 9]]
    )  # fmt: skip
    return torch.cat((random, whole, tiny, narrow, borders, beyond, corners))


def detections(height: int, width: int, count: int) -> tuple[Tensor, Tensor]:
    """Mask probabilities [count, 1, 28, 28] and boxes [count, 4] that touch the picture, of every kind."""
    kind = torch.arange(count) % 4
    probs = torch.rand(count, 1, 28, 28)
    smooth = F.interpolate(torch.rand(count, 1, 4, 4), size=(28, 28), mode="bicubic").clamp(0, 1)
    probs[kind == 1] = smooth[kind == 1]
    probs[kind == 2] = 1.0
    probs[kind == 3] = (smooth[kind == 3] > 0.4).float() * 0.5 + 0.25
    sides = torch.tensor([width, height], dtype=torch.float32)
    low = torch.rand(count, 2) * sides
    high = low + torch.rand(count, 2) ** 3 * sides
    boxes = torch.cat((low, high), 1)
    form = torch.randint(9, (count,))
    boxes[form == 0] -= (torch.rand(count, 1) * (high - low).amin(1, keepdim=True)).expand(-1, 4)[form == 0]
    boxes[form == 1, 1::2] = torch.tensor([0.0, height])
    boxes[form == 2, 0::2] = torch.tensor([0.0, width])
    boxes[form == 3] = torch.tensor([0.0, 0, width, height])
    boxes[form == 4] = low.floor().repeat(1, 2)[form == 4] + torch.tensor([0.0, 0, 1, 1])
    boxes[form == 5] = low.repeat(1, 2)[form == 5] + torch.tensor([0.0, 0, 0.01, 0.01])
    boxes[form == 6] = torch.cat((-sides - low, sides + low), 1)[form == 6]
    return probs, boxes
