"""The parts of gpu_check.py that compare single operations with torchvision's on the same device."""

import time
from collections.abc import Callable, Sequence

import torch
from gpu_setup import Row, Setup, bounded, exact, without_tf32
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import MultiScaleRoIAlign, batched_nms, roi_align
from torchvision.ops.poolers import initLevelMapper

from network_files import InstanceMasks
from network_files.masks.paste import paste_masks
from network_files.masks.targets import mask_targets
from network_files.roi_align import PyramidRoIAlign
from network_files.suppression import nms_at_once

# CUDA fuses a product and an addition into one rounding. Of unit noise that moves RoIAlign's values by up to 1.3e-4.
VALUES, GRADIENTS = 5e-4, 1e-4
OBJECTS = 40


def parts(setup: Setup) -> list[Row]:
    rows = []
    for side in (7, 14):
        own, peer = PyramidRoIAlign(output_size=side), MultiScaleRoIAlign(["0", "1", "2", "3"], side, 2)
        rows += roi_align_rows(setup, f"RoIAlign {side}x{side}", own, peer)
        adaptive = PyramidRoIAlign(output_size=side, sampling_ratio=0, aligned=True)
        rows += roi_align_rows(setup, f"Detectron2's RoIAlign {side}x{side}", adaptive, Detectron2sRoIAlign(side))
    others = mask_target_rows(setup.device), nms_rows(setup), paste_rows(setup.device), deterministic_rows(setup)
    return rows + [row for part in others for row in part]


class Detectron2sRoIAlign(nn.Module):
    """Level by level with torchvision's operator: as many samples as fit, pixel centres at half-integers."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, levels: dict[str, Tensor], boxes: Sequence[Tensor], sizes: object) -> Tensor:
        level_ids = initLevelMapper(2, 5)(list(boxes))
        rois = torch.cat([torch.cat((torch.full_like(b[:, :1], i), b), dim=1) for i, b in enumerate(boxes)])
        output = torch.zeros(len(rois), levels["0"].shape[1], self.side, self.side, device=rois.device)
        for i, level in enumerate(levels.values()):
            chosen = torch.where(level_ids == i)[0]
            read = roi_align(level, rois[chosen], (self.side, self.side), 1 / (4 << i), 0, True)
            output = output.index_put((chosen,), read)
        return output


def roi_align_rows(setup: Setup, name: str, own: nn.Module, peer: nn.Module) -> list[Row]:
    rows, outcomes = [], []
    height, width, channels, rois = (64, 96, 8, 16) if setup.small else (800, 1344, 256, 512)
    torch.manual_seed(0)
    on = {"device": setup.device}
    levels = {str(i): torch.randn(2, channels, height >> i + 2, width >> i + 2, **on) for i in range(4)}
    corner = torch.rand(2, rois, 2, **on) * torch.tensor([width, height], **on) * 0.8
    boxes = list(torch.cat((corner, corner + 4 + torch.rand_like(corner) ** 3 * height * 0.9), dim=2))
    sizes = [(height, width)] * 2
    for align in (own, peer):
        leaves = {key: level.clone().requires_grad_() for key, level in levels.items()}
        with without_tf32():
            output = align(leaves, boxes, sizes)
            gradients = torch.autograd.grad(output.square().sum(), list(leaves.values()))
            seconds = seconds_of(setup, lambda a=align, x=leaves: a(x, boxes, sizes).sum().backward())
        outcomes.append((output.detach(), gradients, seconds))
    (values, gradients, seconds), (their_values, their_gradients, their_seconds) = outcomes
    apart = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(gradients, their_gradients))
    rows.append(bounded("parts", f"{name}, values", largest(values, their_values), VALUES))
    rows.append(bounded("parts", f"{name}, gradients, relative to the largest", apart, GRADIENTS))
    both = f"{seconds * 1e3:.2f} ms, torchvision {their_seconds * 1e3:.2f} ms"
    return [*rows, Row("parts", f"{name}, forward and backward", both)]


def largest(own: Tensor, reference: Tensor) -> float:
    """The largest difference; infinite if the shapes differ."""
    if own.shape != reference.shape:
        return float("inf")
    return (own.float() - reference.float()).abs().max().item() if own.numel() else 0.0


def mask_target_rows(device: torch.device) -> list[Row]:
    """Targets of 40 objects from compact masks, against torchvision's operator on full planes."""
    torch.manual_seed(0)
    size, grown = (120, 160), (156, 208)
    corner = torch.rand(OBJECTS, 2) * torch.tensor([110.0, 80.0])
    objects = torch.cat((corner, corner + 8 + 40 * torch.rand(OBJECTS, 2)), dim=1)
    masks = InstanceMasks.from_dense(ellipses(objects, size)).resize(*grown)
    matched = torch.randint(OBJECTS, (96,), device=device)
    boxes = objects.to(device)[matched] * 1.3 + torch.randn(96, 4, device=device)
    rois = torch.cat((matched[:, None].float(), boxes), dim=1)
    planes = masks.dense()[:, None].float().to(device)
    rows = []
    for aligned in (False, True):
        found = mask_targets([masks], [boxes], [matched], 28, aligned)
        expected = roi_align(planes, rois, (28, 28), aligned=aligned)[:, 0]
        rows.append(
            bounded("parts", f"mask targets of {OBJECTS} objects, aligned {aligned}", largest(found, expected), VALUES)
        )
    return rows


def ellipses(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Ellipses that fill the boxes [N, 4]: uint8 [N, H, W]."""
    x, y = torch.arange(size[1]) + 0.5, torch.arange(size[0])[:, None] + 0.5
    x1, y1, x2, y2 = boxes[:, :, None, None].unbind(dim=1)
    inside = ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1
    return inside.to(torch.uint8)


def nms_rows(setup: Setup) -> list[Row]:
    """Boxes of a batch suppressed all at once, against torchvision's operator image by image."""
    torch.manual_seed(0)
    images, number = (2, 300) if setup.small else (8, 1000)
    on = {"device": setup.device}
    corner = torch.rand(images, number, 2, **on) * 500
    boxes = torch.cat((corner, corner + 40 + 100 * torch.rand(images, number, 2, **on)), dim=2)
    scores, groups = torch.rand(images, number, **on), torch.randint(1, 5, (images, number), **on)
    usable = torch.ones_like(groups, dtype=torch.bool)

    def at_once() -> list[Tensor]:
        best, counts = nms_at_once(boxes, scores, groups, usable, 0.5)
        return [indices[:count] for indices, count in zip(best, counts)]

    def one_by_one() -> list[Tensor]:
        return [batched_nms(*each, 0.5) for each in zip(boxes, scores, groups)]

    found, expected = at_once(), one_by_one()
    others = sum(len(set(a.tolist()) ^ set(b.tolist())) for a, b in zip(found, expected))
    seconds = [seconds_of(setup, way) for way in (at_once, one_by_one)]
    return [
        bounded("parts", f"NMS of {images} x {number} boxes, share of others kept", others / number / images, 1e-3),
        Row("parts", "NMS, all images at once and one by one", ", ".join(f"{s * 1e3:.2f} ms" for s in seconds)),
    ]


def paste_rows(device: torch.device) -> list[Row]:
    torch.manual_seed(0)
    masks, corner = torch.rand(30, 1, 28, 28, device=device), torch.rand(30, 2, device=device) * 100
    boxes = torch.cat((corner, corner + 5 + 60 * torch.rand(30, 2, device=device)), dim=1)
    found, expected = paste_masks(masks, boxes, (120, 160)), paste_masks_in_image(masks, boxes, (120, 160))
    return [bounded("parts", "masks pasted into the image, probabilities", largest(found, expected), 1e-4)]


def seconds_of(setup: Setup, run: Callable[[], object], rounds: int = 5) -> float:
    """Mean seconds of a call, after one to warm up."""
    rounds = 1 if setup.small else rounds
    run()
    setup.synchronize()
    start = time.perf_counter()
    for _ in range(rounds):
        run()
    setup.synchronize()
    return (time.perf_counter() - start) / rounds


def deterministic_rows(setup: Setup) -> list[Row]:
    """With --deterministic, adaptive samples are read on the CPU: its bits, of features in low precision too."""
    if not setup.on_cuda:
        return []
    torch.manual_seed(0)
    align = PyramidRoIAlign(featmap_names=("0",), output_size=7, sampling_ratio=0, aligned=True)
    level, boxes = torch.randn(1, 8, 64, 96), torch.rand(20, 4) * 60 + torch.tensor([0, 0, 90, 90])
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        expected = align({"0": level.to(dtype).float()}, [boxes], [(256, 384)]).to(dtype)
        torch.use_deterministic_algorithms(True)
        found = align({"0": level.to(setup.device, dtype)}, [boxes.to(setup.device)], [(256, 384)])
        torch.use_deterministic_algorithms(False)
        same = found.is_cuda and found.dtype == dtype and torch.equal(found.cpu(), expected)
        rows.append(exact("parts", f"Detectron2's RoIAlign with --deterministic, {dtype}, and on the CPU", same))
    return rows
