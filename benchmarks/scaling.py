"""What grows with the number of processes and pictures: bytes and seconds a picture, a step and a process.

    python benchmarks/scaling.py                                   # on the demo's drawn pictures
    python benchmarks/scaling.py --data-path /data/coco2017        # on a data set of yours, COCO's layout

Prints bytes and seconds a picture, a step or a process, and what they come to for 10 million pictures.
"""
import argparse
import json
import os
import pickle
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from my_dataset_coco import CocoDetection  # noqa: E402 (the path comes first)
from network_files.mask_paste import encode_masks  # noqa: E402
from train_utils.data import AspectRatioBatchSampler  # noqa: E402
from train_utils.demo_dataset import make_demo_dataset  # noqa: E402
from train_utils.models import ModelConfig, build_model  # noqa: E402

MANY = 10_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", help="COCO layout (default: 400 drawn pictures)")
    parser.add_argument("--pictures", type=int, default=1_000_000, help="of the sampler's trial (default: %(default)s)")
    args = parser.parse_args()
    summed_up_a_step()
    index_of_a_picture(args.data_path)
    order_of_an_epoch(args.pictures)
    gathered_of_a_picture()
    signs_of_life()


def summed_up_a_step() -> None:
    """Gradients are float32 with and without --amp."""
    for name, config in {
        "frozen BatchNorm, 3 layers trained": ModelConfig(91, norm="frozen", trainable_layers=3),
        "from scratch": ModelConfig(91, trainable_layers=5),
        "v2, 3 layers trained": ModelConfig(91, arch="v2", trainable_layers=3),
    }.items():
        model = build_model(config)
        gradients = sum(p.numel() for p in model.parameters() if p.requires_grad) * 4
        weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        print(
            f"{name}: {gradients / 1e6:.1f} MB of gradients summed up a step, checkpoint of "
            f"{(weights + gradients) / 1e6:.0f} MB"
        )


def index_of_a_picture(data_path: str | None) -> None:
    """What every process keeps, and needs for a while, to know the annotations."""
    with tempfile.TemporaryDirectory() as folder:
        if data_path is None:
            make_demo_dataset(Path(folder), num_train=400, num_val=2)
        root = Path(data_path or folder)
        file = root / "annotations" / "instances_train2017.json"
        tracemalloc.start()
        started = time.perf_counter()
        dataset = CocoDetection(root, "train")
        seconds = time.perf_counter() - started
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        pictures = len(json.loads(file.read_text())["images"])
        kept = sum(value.nbytes for value in vars(dataset.index).values() if isinstance(value, np.ndarray))
        size = file.stat().st_size
    print(
        f"index: {pictures} pictures, annotation file {size / pictures:.0f} bytes a picture, read with at most "
        f"{peak / pictures:.0f} bytes a picture and kept in {kept / pictures:.0f}; for {MANY:,} pictures a file of "
        f"{size / pictures * MANY / 1e9:.0f} GB, {peak / pictures * MANY / 1e9:.0f} GB to read it and "
        f"{kept / pictures * MANY / 1e9:.1f} GB to keep it in every process; {seconds / pictures * 1e6:.0f} us a "
        "picture while memory is being counted"
    )


def order_of_an_epoch(pictures: int) -> None:
    """Every process draws the batches of all."""
    ratios = np.random.default_rng(0).uniform(0.5, 2, pictures).tolist()
    sampler = AspectRatioBatchSampler(ratios, 4, 3, 0, 0, 64)
    started = time.perf_counter()
    sampler.batches()
    seconds = time.perf_counter() - started
    tracemalloc.start()
    sampler.batches()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(
        f"order of an epoch: {pictures:,} pictures, {seconds:.2f} s and {peak / pictures:.0f} bytes a picture for a "
        f"while; for {MANY:,} pictures {seconds * MANY / pictures:.0f} s and {peak / pictures * MANY / 1e9:.1f} GB"
    )


def gathered_of_a_picture() -> None:
    """100 detections, the most there can be, with round masks, as each process sends them to the main one."""
    generator = torch.Generator().manual_seed(0)
    size = (480, 640)
    corners = torch.rand(100, 2, generator=generator) * torch.tensor([500.0, 350.0])
    boxes = torch.cat((corners, corners + 20 + 120 * torch.rand(100, 2, generator=generator)), dim=1)
    axis = torch.linspace(-1.1, 1.1, 28)
    disc = ((axis[:, None] ** 2 + axis[None] ** 2) < 1).float()
    detection = {
        "labels": np.ones(100, dtype=np.int64),
        "scores": np.ones(100, dtype=np.float32),
        "boxes": boxes.numpy(),
        "codes": encode_masks(disc.expand(100, 1, 28, 28), boxes, size),
    }
    size = len(pickle.dumps({i: detection | {"codes": [dict(c) for c in detection["codes"]]} for i in range(1)}))
    print(
        f"evaluation: {size / 1e3:.1f} kB a picture of 100 detections sent to the main process; 5,000 pictures "
        f"{size * 5e3 / 1e6:.0f} MB, 100,000 pictures {size * 1e5 / 1e9:.1f} GB"
    )


def signs_of_life(processes: int = 1000) -> None:
    """What train_utils/watch.py asks of the store: the main process reads all states at once."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)
    state = json.dumps([12345, 67890, 100000, "loading pictures", False, "a-host-with-a-name", os.getpid()])
    started = time.perf_counter()
    for rank in range(processes):
        store.set(str(rank), state)
    written = (time.perf_counter() - started) / processes
    started = time.perf_counter()
    store.multi_get([str(rank) for rank in range(processes)])
    print(
        f"watch: {processes} processes, {written * 1e6:.0f} us for one to say where it stands, "
        f"{(time.perf_counter() - started) * 1e3:.1f} ms to read all"
    )


if __name__ == "__main__":
    main()
