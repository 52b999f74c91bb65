"""Count, without a GPU, where a training step and an inference would wait for one, and how much they start there.

    python benchmarks/device_waits.py                                  # two photos, float32
    python benchmarks/device_waits.py --batch 1,2,4,8 --amp            # under bf16 autocast
    python benchmarks/device_waits.py --arch v2 --sync-bn              # both with synchronised BatchNorm
    python benchmarks/device_waits.py --places                         # each wait's line of source

Runs this project's network and torchvision's, with the same weights and photos, on a pretended GPU, see
`pretended_gpu.py`. The training step is that of train.py, from the loader's batch to the updated weights; torchvision's
is that of its reference script, which reads the loss once per step, and six more where it prints them. A tensor of the
wrong device ends the program with an error. Small images and few proposals give the same counts as usual ones, sooner.
With --sync-bn, torchvision's network has torch's SyncBatchNorm, and a second process with the same batch is pretended.
"""

from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from common import PROJECT, as_in_torchvisions_reference, build_pair, describe, on_device, parser, training_photos
from measured_rows import table
from pretended_gpu import NAME, PretendedGPU, by_line, pretended_gpu, torchvision_root
from sync_batch_norm_kernels import TorchsSyncBatchNorm, two_equal_processes
from torch import Tensor, nn
from torch.optim import SGD

from network_files import MaskRCNN
from train_utils import engine
from train_utils.device import Precision
from train_utils.engine import Batch, to_device, train_step
from train_utils.errors import one_line_errors
from train_utils.evaluation import ready_for_inference
from train_utils.metrics.coco_evaluation import PendingDetections
from train_utils.optimizer import create_momentum
from train_utils.option_parsing import add_flag, positive
from train_utils.sync_batch_norm import use_sync_bn
from train_utils.training_state import Training

HEADER = ("", "waits", "torchvision", "operations", "torchvision", "copies that nothing waits for")
Photos = tuple[list[Tensor], list[dict]]
Counts = tuple[int, int, int]  # waits, operations started, copies that nothing waits for


def main(args: Namespace) -> None:
    rows = []
    torch.manual_seed(0)
    processes = two_equal_processes() if args.sync_bn else nullcontext()
    with pretended_gpu([PROJECT, torchvision_root()]) as gpu, processes:
        for number in args.batch:
            photos = training_photos(number)
            print(f"{describe(*photos)}; short side {args.min_size}, long side at most {args.max_size}")
            counter = Counting(gpu, photos, args)
            rows += counter.compare("training step", counter.own_step, counter.torchvisions_step)
            rows += counter.compare("inference", counter.own_inference, counter.torchvisions_inference)
    kind = f"{args.arch}{', --sync-bn' if args.sync_bn else ''}, {'bf16 autocast' if args.amp else 'float32'}"
    print("\n" + table(kind, rows, HEADER))


class Counting:
    """Both networks on the pretended GPU, and what is counted of them."""

    def __init__(self, gpu: PretendedGPU, photos: Photos, args: Namespace):
        self.gpu, self.photos, self.args = gpu, photos, args
        self.precision = Precision(NAME, torch.bfloat16 if args.amp else None)
        device = torch.device(NAME, 0)
        ours, theirs = build_pair(
            photos[0], args.min_size, args.max_size, proposals=100, rois_per_image=32, arch=args.arch
        )
        if args.sync_bn:
            use_sync_bn(ours, torch.device("cuda"))
            for module in theirs.modules():
                if type(module) is nn.BatchNorm2d:
                    module.__class__ = TorchsSyncBatchNorm
        self.ours, self.theirs = ours.to(device, memory_format=torch.channels_last), theirs.to(device)
        self.device = device
        self.dense = as_in_torchvisions_reference(*photos)

    def compare(self, what: str, own: Callable[[], None], theirs: Callable[[], None]) -> list[tuple]:
        runs = 2 if what == "training step" else 1  # what only the first step does is not counted
        counts = [
            self.counted(f"{what}, this project", own, runs),
            self.counted(f"{what}, torchvision", theirs, runs),
        ]
        (waits, operations, copies), (other_waits, other_operations, _) = counts
        name = f"{what}, B={len(self.photos[0])}"
        print(
            f"{name}: {waits} waits (torchvision {other_waits}), "
            f"{operations} operations (torchvision {other_operations})",
            flush=True,
        )
        return [(name, waits, other_waits, operations, other_operations, copies)]

    def counted(self, what: str, run: Callable[[], None], runs: int) -> Counts:
        """Count the last of several runs."""
        for _ in range(runs):
            self.gpu.reset()
            run()
        gpu = self.gpu
        if self.args.places:
            print(f"\n{what}: {', '.join(f'{n} operations in {part}' for part, n in gpu.operations.items())}")
            print("\n".join(by_line(gpu.waits)))
            print("  most started:", ", ".join(f"{name} {n}" for name, n in gpu.kinds.most_common(30)))
        return sum(gpu.waits.values()), sum(gpu.operations.values()), sum(gpu.copies.values())

    def own_step(self) -> None:
        if not hasattr(self, "training"):
            self.training = training_of(self.ours, self.precision, self.device, self.gpu)
        self.ours.train()
        with parts_of_a_step(self.gpu):
            train_step(self.training, Batch(*map(tuple, self.photos)), 1)

    def torchvisions_step(self) -> None:
        if not hasattr(self, "optimizer"):
            trainable = [p for p in self.theirs.parameters() if p.requires_grad]
            self.optimizer = SGD(trainable, lr=1e-7, momentum=0.9, weight_decay=1e-4)
        self.theirs.train()
        images, targets = on_device(self.theirs, *self.dense, self.device)
        with self.precision.autocast():
            loss = sum(self.theirs(images, targets).values())
        loss.item()
        self.optimizer.zero_grad(set_to_none=True)
        self.gpu.part = "backward"
        loss.backward()
        self.gpu.part = "optimizer"
        self.optimizer.step()

    @torch.no_grad()  # inference_mode would make tensors that torchvision keeps for training steps
    def own_inference(self) -> None:
        """From images to detections on the host, as `evaluate` does it; it makes codes of them in another thread."""
        if not hasattr(self, "network"):
            self.network = ready_for_inference(self.ours, self.precision)
        self.gpu.reset()
        with self.precision.autocast():
            detections = self.network.detect(to_device(self.photos[0], self.device))
        PendingDetections(detections).read()

    @torch.no_grad()
    def torchvisions_inference(self) -> None:
        """From images to full-size masks on the host, as its reference script does it."""
        self.theirs.eval()
        with self.precision.autocast():
            detections = self.theirs([image.to(self.device, non_blocking=True) for image in self.dense[0]])
        for detection in detections:
            for value in detection.values():
                value.cpu()


def training_of(model: MaskRCNN, precision: Precision, device: torch.device, gpu: PretendedGPU) -> Training:
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = SGD(trainable, lr=1e-7, momentum=0.9, weight_decay=1e-4, fused=True)
    optimizer.register_step_pre_hook(lambda *_: setattr(gpu, "part", "optimizer"))
    create_momentum(optimizer)
    return Training(model, model, optimizer, precision, device)


def parts_of_a_step(gpu: PretendedGPU) -> AbstractContextManager:
    """Context in which the activities that a step reports name its parts in the counts."""
    gpu.part = "forward"
    engine.report_activity = lambda activity, step=None: setattr(gpu, "part", activity)
    return nullcontext()


def numbers(text: str) -> list[int]:
    try:
        return [positive(number) for number in text.split(",")]
    except ValueError:
        raise ArgumentTypeError(f"'{text}' is not a list of numbers like 1,2,4,8") from None


def parse_arguments() -> Namespace:
    p = parser(__doc__)
    p.add_argument("--batch", type=numbers, default=[2], help="photos per step, several separated by commas (2)")
    p.add_argument("--min-size", type=positive, default=128, help="short side of the input (default: %(default)s)")
    p.add_argument("--max-size", type=positive, default=192, help="long side's limit (default: %(default)s)")
    p.add_argument("--arch", choices=("v1", "v2"), default="v1", help="the network (default: %(default)s)")
    add_flag(p, "--sync-bn", "synchronised BatchNorm")
    add_flag(p, "--amp", "bf16 autocast")
    add_flag(p, "--places", "list each wait's line of source, and the operators most often started")
    return p.parse_args()


if __name__ == "__main__":
    with one_line_errors():
        main(parse_arguments())
