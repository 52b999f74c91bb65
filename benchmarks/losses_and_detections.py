"""Compare losses, gradients and detections with torchvision's, for the same weights, photos and RNG state.

    python benchmarks/losses_and_detections.py
    python benchmarks/losses_and_detections.py --min-size 800 --max-size 1333 --batch-size 4
    python benchmarks/losses_and_detections.py --weights maskrcnn_resnet50_fpn_coco.pth

The effect of float32 rounding alone is shown beside it: torchvision's own network with channels-last weights.
"""

from argparse import Namespace
from collections.abc import Mapping, Sequence

import torch
from common import as_in_torchvisions_reference, build_pair, describe, machine, on_device, parser, training_photos
from torch import Tensor, nn

from train_utils.device import choose_device
from train_utils.errors import one_line_errors
from train_utils.option_parsing import positive

LARGEST_SHIFT = 1.0  # pixels between two boxes that still count as the same detection

# Of one network: losses by name, gradients by parameter, and each photo's detections.
Outcome = tuple[dict[str, Tensor], dict[str, Tensor], list[dict[str, Tensor]]]
# What is compared -> (difference, relative difference) as text.
Column = dict[str, tuple[str, str]]


def main(args: Namespace) -> None:
    device = choose_device(args.device)
    photos = training_photos(args.batch_size)
    dense = as_in_torchvisions_reference(*photos)
    ours, theirs = build_pair(photos[0], args.min_size, args.max_size, args.weights)
    print(machine(device))
    print(f"photos: {describe(*photos)}; short side {args.min_size}, long side at most {args.max_size}")

    reference = outcome_of(theirs.to(device), *dense, device, args.seed)
    own = outcome_of(ours.to(device, memory_format=torch.channels_last), *photos, device, args.seed)
    rounding = outcome_of(theirs.to(memory_format=torch.channels_last), *dense, device, args.seed)
    outcomes = {"this project": own, "torchvision, channels last": rounding}
    print_table({name: differences(outcome, reference) for name, outcome in outcomes.items()}, reference)


def outcome_of(
    network: nn.Module, images: Sequence[Tensor], targets: Sequence[dict], device: torch.device, seed: int
) -> Outcome:
    """Compute everything that is compared, on the CPU."""
    images, targets = on_device(network, images, targets, device)
    network.train()
    network.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    losses = network(images, targets)
    sum(losses.values()).backward()
    gradients = {name: p.grad.cpu().clone() for name, p in network.named_parameters() if p.grad is not None}
    network.eval()
    with torch.inference_mode():
        detections = [{k: v.cpu() for k, v in detection.items()} for detection in network(images)]
    return {name: value.detach().cpu() for name, value in losses.items()}, gradients, detections


def differences(own: Outcome, reference: Outcome) -> Column:
    """Return the column of one network, row by row."""
    (own_losses, own_gradients, own_detections), (losses, gradients, detections) = own, reference
    column = {name: largest_difference({name: own_losses[name]}, {name: losses[name]}) for name in losses}
    column["gradients"] = largest_difference(own_gradients, gradients)
    return column | detection_differences(own_detections, detections)


def largest_difference(own: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> tuple[str, str]:
    """Return the largest difference over all tensors, absolute and relative to its tensor's largest entry."""
    if own.keys() != reference.keys():
        return "other tensors", ", ".join(sorted(own.keys() ^ reference.keys())[:3])
    absolute = {name: (own[name] - reference[name]).abs().max().item() for name in reference}
    relative = {name: absolute[name] / max(reference[name].abs().max().item(), 1e-30) for name in reference}
    return f"{max(absolute.values()):.1e}", f"{max(relative.values()):.1e}"


def detection_differences(own: Sequence[dict], reference: Sequence[dict]) -> Column:
    """Return the differences of matching detections, and the number without a counterpart."""
    without, mask_pixels = 0, 0
    boxes, scores, masks = [0.0], [0.0], [0.0]
    for a, b in zip(own, reference):
        i, j = counterparts(a, b)
        without += len(a["labels"]) + len(b["labels"]) - 2 * len(i)
        if len(i):
            boxes.append((a["boxes"][i] - b["boxes"][j]).abs().max().item())
            scores.append((a["scores"][i] - b["scores"][j]).abs().max().item())
            masks.append((a["masks"][i] - b["masks"][j]).abs().max().item())
            mask_pixels += ((a["masks"][i] > 0.5) != (b["masks"][j] > 0.5)).sum().item()
    return {
        "boxes, pixels": (f"{max(boxes):.1e}", ""),
        "scores": (f"{max(scores):.1e}", ""),
        "mask probabilities": (f"{max(masks):.1e}", ""),
        "mask pixels, cut at 0.5": (f"{mask_pixels}", ""),
        "without counterpart of same label": (f"{without}", ""),
    }


def counterparts(own: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Match detections with the same label and boxes within `LARGEST_SHIFT`: indices [P] into each of the two.

    A detection is in one pair at most. Ranks are ignored: two scores that are equal up to rounding may swap.
    """
    distance = (own["boxes"][:, None] - reference["boxes"][None]).abs().amax(dim=-1)
    distance[own["labels"][:, None] != reference["labels"][None]] = torch.inf
    pairs = []
    for i, j in torch.nonzero(distance <= LARGEST_SHIFT)[distance[distance <= LARGEST_SHIFT].argsort()].tolist():
        if all(i != other_i and j != other_j for other_i, other_j in pairs):
            pairs.append((i, j))
    i, j = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(dim=1)
    return i, j


def print_table(columns: Mapping[str, Column], reference: Outcome) -> None:
    losses, gradients, detections = reference
    values = {name: f"{value:.6f}" for name, value in losses.items()}
    values["gradients"] = f"{len(gradients)} tensors"
    counts = " + ".join(str(len(d["labels"])) for d in detections)
    print(f"largest differences from torchvision, float32; detections: {counts}")
    print(f"{'':<34}{'torchvision':>14}" + "".join(f"{name:>28}" for name in columns))
    print(" " * 48 + f"{'absolute':>16}{'relative':>12}" * len(columns))
    for row in next(iter(columns.values())):
        cells = "".join(f"{absolute:>16}{relative:>12}" for absolute, relative in (c[row] for c in columns.values()))
        print(f"{row:<34}{values.get(row, ''):>14}{cells}")


def parse_arguments() -> Namespace:
    p = parser(__doc__)
    p.add_argument("--device", default="cpu", help="cuda, cuda:N or cpu (default: %(default)s)")
    p.add_argument("--min-size", type=positive, default=320, help="short side of the input (default: %(default)s)")
    p.add_argument("--max-size", type=positive, default=480, help="long side's limit (default: %(default)s)")
    p.add_argument("-b", "--batch-size", type=positive, default=2, help="photos (default: %(default)s)")
    p.add_argument("--weights", help="Mask R-CNN weights of COCO's 90 classes for both (default: drawn at random)")
    p.add_argument("--seed", type=int, default=0, help="of the RNG that draws the samples (default: %(default)s)")
    return p.parse_args()


if __name__ == "__main__":
    with one_line_errors():
        main(parse_arguments())
