"""Repeat training steps in this process and compare the bits of their gradients and of whole short runs.

    python -m tests.programs.determinism                           # every network, float32 and --amp, all cores
    python -m tests.programs.determinism --threads 4 --networks v1 --repeats 20

Networks are the real ones, with a ResNet-50, on drawn images. The exit status is 1 if any bit differs. Threads decide
how sums are rounded and, where an operator adds in the order in which its threads arrive, whether two runs are equal at
all; so each process has one number of threads, and pytest, which computes with one thread, starts this program.
"""

import argparse
import hashlib
import sys
from dataclasses import replace

import torch
from torch import Tensor

from network_files import InstanceMasks, MaskRCNN
from train_utils.device import Precision
from train_utils.models import ModelConfig, build_model

SMALL = ModelConfig(num_classes=91, trainable_layers=5, min_size=96, max_size=160, rois_per_image=84, proposals=600)
POSITIVE = 0.9  # of the sampled RoIs: the more share a class, the likelier threads meet in a sum
NETWORKS = {
    "v1": SMALL,
    "v1-frozen": replace(SMALL, norm="frozen", trainable_layers=3),
    "v2": replace(SMALL, arch="v2"),
    "detectron2": replace(SMALL, arch="detectron2", norm="frozen", trainable_layers=3),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(default: %(default)s)")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--precisions", nargs="+", choices=("float32", "amp"), default=["float32", "amp"])
    parser.add_argument("--repeats", type=int, default=20, help="of one step's gradients (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=6, help="of each of two runs (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    same = True
    for name in args.networks:
        for precision in args.precisions:
            model = network(NETWORKS[name])
            unequal = unequal_gradients(model, precision, args.repeats)
            apart = unequal_weights(NETWORKS[name], precision, args.steps)
            same &= not unequal and not apart
            print(
                f"{name}, {precision}, {args.threads} threads: {args.repeats} repetitions of one step "
                f"{verdict(unequal)}; two runs of {args.steps} steps {verdict(apart)}",
                flush=True,
            )
    return 0 if same else 1


def network(config: ModelConfig) -> MaskRCNN:
    torch.manual_seed(0)
    model = build_model(config).train()
    model.roi_heads.sampler.positive_fraction = POSITIVE
    return model.to(memory_format=torch.channels_last)


def verdict(names: list[str]) -> str:
    return f"DIFFER in {len(names)} tensors ({', '.join(names[:3])})" if names else "are bit-identical"


def unequal_gradients(model: MaskRCNN, precision: str, repeats: int) -> list[str]:
    """Parameters whose gradients of one step differ between repetitions."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    first, unequal = None, set()
    for _ in range(repeats):
        model.load_state_dict(state)  # running means move with every forward pass
        model.zero_grad(set_to_none=True)
        backward(model, precision, step=0)
        digests = {name: digest(p.grad) for name, p in model.named_parameters() if p.grad is not None}
        first = first or digests
        unequal |= {name for name in digests if digests[name] != first[name]}
    return sorted(unequal)


def unequal_weights(config: ModelConfig, precision: str, steps: int) -> list[str]:
    """Tensors of the state dict in which two equal runs end with other bits."""
    ends = []
    for _ in range(2):
        model = network(config)
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trainable, lr=0.005, momentum=0.9, weight_decay=1e-4, fused=True)
        for step in range(steps):
            optimizer.zero_grad(set_to_none=True)
            backward(model, precision, step)
            optimizer.step()
        ends.append({name: digest(value) for name, value in model.state_dict().items()})
    return [name for name in ends[0] if ends[0][name] != ends[1][name]]


def backward(model: MaskRCNN, precision: str, step: int) -> None:
    torch.manual_seed(step)
    images, targets = drawn_batch(step)
    with Precision.choose(torch.device("cpu"), precision == "amp").autocast():
        loss = sum(model(images, targets).values())
    loss.backward()


def drawn_batch(seed: int) -> tuple[list[Tensor], list[dict]]:
    """Two noisy images with 100 discs each, of three classes: many positive RoIs, whose equal indices meet in sums."""
    generator = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for height, width in ((200, 260), (240, 200)):
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        image = torch.rand(3, height, width, generator=generator)
        masks, boxes = [], []
        for _ in range(100):
            radius = int(torch.randint(6, 40, (), generator=generator))
            y = int(torch.randint(radius, height - radius, (), generator=generator))
            x = int(torch.randint(radius, width - radius, (), generator=generator))
            disc = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
            image[:, disc] = torch.rand(3, 1, generator=generator) * 0.8 + image[:, disc] * 0.2
            masks.append(disc)
            boxes.append([x - radius, y - radius, x + radius + 1, y + radius + 1])
        images.append(image)
        targets.append(
            {
                "boxes": torch.tensor(boxes, dtype=torch.float32),
                "labels": torch.randint(1, 4, (100,), generator=generator),
                "masks": InstanceMasks.from_dense(torch.stack(masks)),
            }
        )
    return images, targets


def digest(tensor: Tensor) -> bytes:
    return hashlib.sha256(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()).digest()


if __name__ == "__main__":
    sys.exit(main())
