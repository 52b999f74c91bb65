"""Measure what grows with the number of processes and images: bytes and seconds per image, step and process.

    python benchmarks/scaling.py                                   # on the demo's drawn images
    python benchmarks/scaling.py --data-path /data/coco2017        # on your data, in COCO's layout

Prints bytes and seconds per image, step or process, and their totals for 10 million images, for docs/SCALING.md.
`--pictures 10000000` measures the order of an epoch at that size (2 GB, some minutes).
"""

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from common import PROJECT, machine

from dataset_files.atomic_files import replacing
from my_dataset_coco import CocoDetection, coco_object
from network_files.masks.encode import encode_masks
from train_utils.classes import ClassTable
from train_utils.demo_dataset import make_demo_dataset
from train_utils.loaders import AspectRatioBatchSampler, fingerprint, training_loader
from train_utils.metrics.coco_evaluation import CocoEvaluator
from train_utils.models import ModelConfig, build_model
from train_utils.options import TrainSettings
from train_utils.weight_files.weights import read_weight_file

MANY = 10_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", help="COCO layout (default: 400 drawn images)")
    parser.add_argument("--pictures", type=int, default=1_000_000, help="for the sampler (default: %(default)s)")
    args = parser.parse_args()
    print(f"{machine(torch.device('cpu'))}\n")
    summed_up_a_step()
    writing_a_checkpoint()
    index_of_a_picture(args.data_path)
    start_of_a_run()
    order_of_an_epoch(args.pictures)
    names_in_a_folder()
    gathered_of_a_picture()
    scored_of_a_picture()
    heartbeats()
    rendezvous()


def summed_up_a_step() -> None:
    """Print the bytes of gradients per step; they are float32 with and without --amp."""
    for name, config in {
        "frozen BatchNorm, 3 layers trained": ModelConfig(91, norm="frozen", trainable_layers=3),
        "from scratch": ModelConfig(91, trainable_layers=5),
        "v2, 3 layers trained": ModelConfig(91, arch="v2", trainable_layers=3),
    }.items():
        model = build_model(config)
        gradients = sum(p.numel() for p in model.parameters() if p.requires_grad) * 4
        weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        print(
            f"{name}: {gradients / 1e6:.1f} MB of gradients summed per step, checkpoint of "
            f"{(weights + gradients) / 1e6:.0f} MB"
        )


def writing_a_checkpoint() -> None:
    """Time a checkpoint as a run writes it, atomically. One process writes, the others wait."""
    model = build_model(ModelConfig(91, norm="frozen", trainable_layers=3))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        path, seconds = Path(folder) / "model_0.pth", []
        for _ in range(3):
            started = time.perf_counter()
            with replacing(path) as file:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
            seconds.append(time.perf_counter() - started)
        size = path.stat().st_size
        started = time.perf_counter()
        read_weight_file(path)
        reading = time.perf_counter() - started
    print(
        f"checkpoint: {size / 1e6:.0f} MB, {min(seconds):.2f} to {max(seconds):.2f} s to write, sync and rename, "
        f"{reading:.2f} s to check and read"
    )


def index_of_a_picture(data_path: str | None) -> None:
    """Print the size of the index that every process keeps of the annotations."""
    with tempfile.TemporaryDirectory() as folder:
        if data_path is None:
            make_demo_dataset(Path(folder), num_train=400, num_val=2)
        root = Path(data_path or folder)
        file = root / "annotations" / "instances_train2017.json"
        dataset = CocoDetection(root, "train")
        pictures = len(json.loads(file.read_text())["images"])
        kept = sum(value.nbytes for value in vars(dataset.index).values() if isinstance(value, np.ndarray))
        size = file.stat().st_size
    print(
        f"index: {pictures} images, annotation file {size / pictures:.0f} bytes per image, of which "
        f"{kept / pictures:.0f} are kept; for {MANY:,} images a file of {size / pictures * MANY / 1e9:.0f} GB and "
        f"{kept / pictures * MANY / 1e9:.1f} GB in every process"
    )


INDEXING = """
import re, sys, time
from my_dataset_coco import CocoDetection
def peak():
    return int(re.search("VmHWM: *([0-9]+)", open("/proc/self/status").read().replace("\\t", " "))[1]) * 1024
before, started = peak(), time.perf_counter()
CocoDetection(sys.argv[1], "train")
print(time.perf_counter() - started, peak() - before)
"""


def start_of_a_run(pictures: int = 100_000) -> None:
    """Time what train.py does with every image before the first step."""
    picture = {"file_name": "000000123456.jpg", "height": 480, "width": 640}
    rows = [picture | {"id": i} for i in range(pictures)]
    box = {"bbox": [1, 1, 20, 20], "segmentation": [[1, 1, 20, 1, 20, 20]], "area": 400, "iscrowd": 0, "category_id": 1}
    objects = [box | {"id": i, "image_id": i // 7} for i in range(7 * pictures)]
    content = {"images": rows, "annotations": objects, "categories": [{"id": 1, "name": "thing"}]}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "annotations").mkdir()
        (root / "train2017").mkdir()
        (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
        del rows, objects, content
        size = (root / "annotations" / "instances_train2017.json").stat().st_size
        command = [sys.executable, "-c", INDEXING, str(root)]
        output = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
        seconds, peak = map(float, output.split())
        first = seconds / pictures * 1e6
        started = time.perf_counter()
        dataset = CocoDetection(root, "train")
        later = (time.perf_counter() - started) / pictures * 1e6
        stored = sum(f.stat().st_size for f in (root / "annotations").glob("*.index"))
        kept = sum(value.nbytes for value in vars(dataset.index).values() if isinstance(value, np.ndarray))
        started = time.perf_counter()
        training_loader(dataset, TrainSettings(workers=0), pin_memory=False)
        fingerprint(dataset)
        groups = time.perf_counter() - started
    print(
        f"start: {pictures:,} images with seven small polygons each in a file of {size / 1e6:.0f} MB, {first:.0f} "
        f"us per image to index them once, with at most {peak / size:.1f} bytes of memory per byte of the file; "
        f"{later:.1f} us to read the stored index of {stored / pictures:.0f} bytes per image, {kept / pictures:.0f} "
        f"bytes kept, {groups / pictures * 1e6:.1f} us for aspect ratios and checksum; for {MANY:,} images "
        f"{first * MANY / 6e7:.0f} minutes once, then {(later + groups / pictures * 1e6) * MANY / 1e6:.0f} s in every "
        "process"
    )


def names_in_a_folder(files: int = 100_000) -> None:
    """Time opening an image by name, on this file system with cached names."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        for count in (1000, files):
            for i in range(count):
                (Path(folder) / f"{i:012d}.jpg").touch()
            chosen = np.random.default_rng(0).integers(0, count, 2000).tolist()
            started = time.perf_counter()
            for i in chosen:
                with open(f"{folder}/{i:012d}.jpg", "rb"):
                    pass
            times.append((time.perf_counter() - started) / len(chosen) * 1e6)
    print(f"names: {times[0]:.0f} us to open one of 1,000 files in a folder, {times[1]:.0f} us one of {files:,}")


def order_of_an_epoch(pictures: int) -> None:
    """Time drawing the batches of all processes, which every process does."""
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
        f"order of an epoch: {pictures:,} images, {seconds:.2f} s and temporarily {peak / pictures:.0f} bytes per "
        f"image; for {MANY:,} images {seconds * MANY / pictures:.0f} s and {peak / pictures * MANY / 1e9:.1f} GB"
    )


def gathered_of_a_picture() -> None:
    """Print the size of what each process sends to the main one."""
    size = len(pickle.dumps({1: detections_of_a_picture()}))
    print(
        f"evaluation: {size / 1e3:.1f} kB per image of 100 detections sent to the main process; 5,000 images "
        f"{size * 5e3 / 1e6:.0f} MB, 100,000 images {size * 1e5 / 1e9:.1f} GB"
    )


def scored_of_a_picture(pictures: int = 500) -> None:
    """Time what the main process does alone: convert all detections to COCO's results and score them."""
    codes = detections_of_a_picture()["codes"]
    objects = [
        {"id": 7 * i + k + 1, "image_id": i + 1, "category_id": 1, "bbox": [50 * k, 50, 60, 60], "area": 3600,
         "iscrowd": 0, "segmentation": {"size": [480, 640], "counts": codes[k]["counts"].decode()}}
        for i in range(pictures) for k in range(7)
    ]  # fmt: skip
    images = [{"id": i + 1, "height": 480, "width": 640, "file_name": f"{i}.jpg"} for i in range(pictures)]
    truth = coco_object({"images": images, "annotations": objects, "categories": [{"id": 1, "name": "thing"}]})
    evaluator = CocoEvaluator(truth, ClassTable({1: "thing"}, {1: 1}))
    evaluator.detections = {i + 1: detections_of_a_picture() for i in range(pictures)}
    started = time.perf_counter()
    evaluator.metrics()
    seconds = (time.perf_counter() - started) / pictures
    print(
        f"scoring: {seconds * 1e3:.1f} ms per image of 100 detections of one class and 7 objects; 5,000 images "
        f"{seconds * 5e3:.0f} s, 100,000 images {seconds * 1e5 / 60:.0f} minutes"
    )


def detections_of_a_picture() -> dict:
    """Make 100 detections, the maximum per image, with round masks."""
    generator = torch.Generator().manual_seed(0)
    size = (480, 640)
    corners = torch.rand(100, 2, generator=generator) * torch.tensor([500.0, 350.0])
    boxes = torch.cat((corners, corners + 20 + 120 * torch.rand(100, 2, generator=generator)), dim=1)
    axis = torch.linspace(-1.1, 1.1, 28)
    disc = ((axis[:, None] ** 2 + axis[None] ** 2) < 1).float()
    return {
        "labels": np.ones(100, dtype=np.int64),
        "scores": np.ones(100, dtype=np.float32),
        "boxes": boxes.numpy(),
        "codes": encode_masks(disc.expand(100, 1, 28, 28).numpy(), boxes.numpy(), size),
    }


def heartbeats(processes: int = 1000) -> None:
    """Time the requests of train_utils/run/watchdog.py to the store; the main process reads all states at once."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)
    state = json.dumps([12345, 67890, 100000, "loading images", False, "a-host-with-a-name", os.getpid()])
    started = time.perf_counter()
    for rank in range(processes):
        store.set(str(rank), state)
    written = (time.perf_counter() - started) / processes
    started = time.perf_counter()
    store.multi_get([str(rank) for rank in range(processes)])
    print(
        f"watchdog: {processes} processes, {written * 1e6:.0f} us per heartbeat, "
        f"{(time.perf_counter() - started) * 1e3:.1f} ms to read all"
    )


def rendezvous(processes: int = 1000) -> None:
    """Time the main process's requests to the store in `fresh_namespace`: two checks and an answer per process."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)
    started = time.perf_counter()
    for rank in range(processes):
        store.set(f"hello/{rank}", "a" * 32)
        store.check([f"hello/{rank}"])
        store.set(f"answer/{store.get(f'hello/{rank}').decode()}", "b" * 32)
        store.set(f"thanks/{rank}", "")
        store.check([f"thanks/{rank}"])
    print(f"rendezvous: {processes} processes, {time.perf_counter() - started:.2f} s of requests to the store")


if __name__ == "__main__":
    main()
