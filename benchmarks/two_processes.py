"""Compare two processes on two cores with one process on both: images per second in training and evaluation.

    python benchmarks/two_processes.py
    python benchmarks/two_processes.py --min-size 800 --max-size 1333 --steps 3 --rounds 3

Runs the steps of train.py (`train_step`, under torchrun with DistributedDataParallel and one photo per process, or
alone with a batch of two), and the evaluation of validation.py (`evaluate`, each process with its share of the photos).
Both get the same photos of 640x480, in float32 and with --amp, and are started alternately. Timing begins when all
processes are ready and have done one step, or one evaluation, and ends when the last one is done.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from common import coco_tiny, machine, parser, random_weights
from measured_rows import compared, progress, table
from overfit import ANNOTATIONS, write_subset
from torch.optim import SGD

from my_dataset_coco import CocoDetection
from network_files import MaskRCNN
from train_utils.classes import ClassTable
from train_utils.device import Precision, choose_device
from train_utils.distributed import barrier, in_parallel, is_main, process_group, rank, world_size
from train_utils.engine import Batch, train_step
from train_utils.errors import one_line_errors, reading_input
from train_utils.evaluation import evaluate
from train_utils.loaders import evaluation_loader
from train_utils.models import ModelConfig, build_model
from train_utils.option_parsing import add_flag, positive
from train_utils.training_state import Training

PROCESSES = 2
TO_REACH = 0.9


def main(args: Namespace) -> None:
    """Start the processes alternately and compare their times."""
    with tempfile.TemporaryDirectory() as folder, reading_input():
        content = json.loads((coco_tiny() / ANNOTATIONS).read_text())
        same_size = [p["id"] for p in content["images"] if (p["height"], p["width"]) == (480, 640)]
        write_subset(coco_tiny(), Path(folder), content, same_size[: args.photos])
        rates: dict[int, list[dict[str, float]]] = {1: [], PROCESSES: []}
        for i in range(args.rounds):
            for processes in (1, PROCESSES) if i % 2 == 0 else (PROCESSES, 1):
                progress(f"round {i + 1}, processes: {processes}")
                rates[processes].append(images_per_second(args, folder, processes))
    print(machine(torch.device("cpu")))
    rows = []
    for what in rates[1][0]:
        one, two = ([rate[what] for rate in rates[processes]] for processes in (1, PROCESSES))
        ratio = statistics.median(b / a for a, b in zip(one, two))
        figures = (f"{statistics.median(values):.3f} images/s" for values in (two, one))
        rows.append(compared(what, *figures, ratio, TO_REACH))
    header = ("", "two processes, one thread each", "one process, two threads", "ratio", "to reach", "reached")
    print(table(f"photos of 640x480 at {args.min_size}/{args.max_size}", rows, header))


def images_per_second(args: Namespace, folder: str, processes: int) -> dict[str, float]:
    """Measure images per second in separate processes, by what is measured."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    options = [f"--{name}={value}" for name, value in (
        ("work-on", folder), ("steps", args.steps), ("min-size", args.min_size), ("max-size", args.max_size)
    )]  # fmt: skip
    threads = {"OMP_NUM_THREADS": str(PROCESSES // processes)}
    command = [*(start if processes > 1 else [sys.executable]), __file__, *options]
    done = subprocess.run(command, env=os.environ | threads, stdout=subprocess.PIPE, text=True, check=True)
    rates = json.loads(done.stdout.strip().splitlines()[-1])
    progress(", ".join(f"{what} {rate:.3f} images/s" for what, rate in rates.items()))
    return rates


def work(args: Namespace) -> None:
    """Do the work of one of the processes; the main one prints images per second."""
    device = choose_device("cpu")
    dataset = CocoDetection(args.work_on, "train")
    items = [dataset[i] for i in range(len(dataset))]
    config = ModelConfig(91, norm="frozen", min_size=args.min_size, max_size=args.max_size)
    weights = random_weights(config, [items[0][0]])
    loader = evaluation_loader(dataset, batch_size=1, workers=0)
    classes = ClassTable.of_dataset(dataset)
    batch = PROCESSES // world_size()
    rates = {}
    for name, amp in (("float32", False), ("--amp", True)):
        precision = Precision.choose(device, amp)
        model = build_model(config)
        model.load_state_dict(weights)
        model.to(memory_format=torch.channels_last)
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = SGD(trainable, lr=0.0, momentum=0.9, weight_decay=1e-4, fused=True)
        training = Training(model, in_parallel(model, device, fixed_buckets=False), optimizer, precision, device)

        def steps(count: int, training: Training = training) -> None:
            training.model.train()
            for i in range(count):
                first = (i * PROCESSES + rank() * batch) % len(items)
                train_step(training, Batch(*dataset.collate_fn(items[first : first + batch])), 1).read()

        def evaluation(model: MaskRCNN = model, precision: Precision = precision) -> None:
            evaluate(model, loader, dataset.coco if is_main() else None, classes, device, precision)

        steps(1)
        rates[f"training, {name}"] = args.steps * PROCESSES / seconds_of_all(lambda: steps(args.steps))
        evaluation()
        rates[f"evaluation, {name}"] = len(items) / seconds_of_all(evaluation)
    if is_main():
        print(json.dumps(rates))


def seconds_of_all(run: Callable[[], None]) -> float:
    """Return the time from the common start of all processes to the end of the last one."""
    barrier()
    start = time.perf_counter()
    run()
    barrier()
    return time.perf_counter() - start


def parse_arguments() -> Namespace:
    p = parser(__doc__)
    p.add_argument("--min-size", type=positive, default=480, help="short side of the input (default: %(default)s)")
    p.add_argument("--max-size", type=positive, default=640, help="long side's limit (default: %(default)s)")
    p.add_argument("--steps", type=positive, default=3, help="timed steps of each start (default: %(default)s)")
    p.add_argument("--photos", type=positive, default=6, help="to train on and to evaluate (default: %(default)s)")
    p.add_argument("--rounds", type=positive, default=2, help="starts of each (default: %(default)s)")
    p.add_argument("--work-on", help="run as one of the processes, on the photos in this folder")
    add_flag(p, "--quick", "smallest settings; the figures mean nothing")
    args = p.parse_args()
    if args.quick:
        args.min_size, args.max_size, args.steps, args.photos, args.rounds = 64, 96, 1, 2, 1
    return args


if __name__ == "__main__":
    with one_line_errors():
        args = parse_arguments()
        if args.work_on is None:
            main(args)
        else:
            args.world_size, args.dist_url, args.timeout, args.device = 1, "env://", 600, "cpu"
            with process_group(args):
                work(args)
