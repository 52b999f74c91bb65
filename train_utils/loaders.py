"""Build data loaders whose order of items depends only on seed and epoch."""

import math
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dataset_files.coco_index import AnnotationsLost
from dataset_files.dataset import InstanceDataset
from dataset_files.image_files import file_states
from train_utils.distributed import is_main, rank, world_size
from train_utils.errors import InputError
from train_utils.options import TrainSettings
from train_utils.run.signals import leave_signals_to_the_main_process
from transforms import CopyPaste

CPU = torch.device("cpu")
GPU_BATCH = 8  # images per batch in evaluation


def fingerprint(dataset: InstanceDataset) -> str:
    """Summarise a training set in a string that changes with its images, classes or annotations."""
    sizes = np.array([dataset.get_height_and_width(i) for i in range(len(dataset))], dtype=np.int64)
    names = repr(sorted(dataset.class_names.items())).encode()
    # Older checkpoints store the text up to the comma before "content"; they are compared with that part.
    counts = f"{len(dataset)} pictures, check sum {zlib.crc32(sizes.tobytes(), zlib.crc32(names)):08x}"
    files = file_states(dataset.image_folder, dataset.image_names())[:, 0]
    return f"{counts}, content {dataset.checksum()}, files {zlib.crc32(files.tobytes()):08x}"


def training_loader(dataset: InstanceDataset, settings: TrainSettings, pin_memory: bool) -> DataLoader:
    """Return a loader of this process's share of the training set, in batches of images with similar aspect ratios."""
    ratios = [w / h for h, w in (dataset.get_height_and_width(i) for i in range(len(dataset)))]
    threshold, seed, repeats = settings.repeat_threshold, settings.seed, None
    if threshold:
        repeats = repeat_factors(dataset.classes_of_images(), threshold)
        if is_main():
            print(
                f"--repeat-threshold {threshold:g}: {(repeats > 1).sum()} images with rare classes are shown more "
                f"often; an epoch has {math.ceil(repeats.sum())} images instead of {len(repeats)}",
                flush=True,
            )
    groups, size = settings.aspect_ratio_group_factor, settings.images_per_step()
    sampler = AspectRatioBatchSampler(ratios, size, groups, seed, rank(), world_size(), repeats)
    collate = partial(transform_seeded, CopyPaste()) if settings.use_copypaste else dataset.collate_fn
    items = SeededItems(dataset, seed, keep_seeds=settings.use_copypaste)
    return loader_of(items, sampler, settings.workers, collate, pin_memory)


def evaluation_loader(
    dataset: InstanceDataset, batch_size: int | None, workers: int | None, device: torch.device = CPU
) -> DataLoader:
    """Return a loader of this process's share of the images. The default batch size is 8 on a GPU, else 1.

    All images of a batch have the same size, since padding an image to another's size would change its detections. So
    metrics depend on the batch size only by rounding, and not on the number of processes.
    """
    if batch_size is None:
        batch_size = 1 if device.type == "cpu" else GPU_BATCH
    by_size: dict[tuple[int, int], list[int]] = {}
    for i in range(len(dataset)):
        by_size.setdefault(dataset.get_height_and_width(i), []).append(i)
    batches = [group[i : i + batch_size] for group in by_size.values() for i in range(0, len(group), batch_size)]
    own = sorted(batches)[rank() :: world_size()]
    return loader_of(MarkedItems(dataset), own, workers, dataset.collate_fn, pin_memory=device.type == "cuda")


def loader_of(items: Dataset, sampler: Any, workers: int | None, collate: Callable, pin_memory: bool) -> DataLoader:
    return DataLoader(
        items, batch_sampler=sampler, num_workers=default_workers() if workers is None else workers,
        collate_fn=collate, pin_memory=pin_memory, worker_init_fn=leave_signals_to_the_main_process,
    )  # fmt: skip


def default_workers() -> int:
    """Return the number of loader workers per process: available cores divided by processes, from 1 to 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // world_size()))


class MarkedItems(Dataset):
    """Dataset that returns (None, {"unreadable": [reason]}) for an item that cannot be read, instead of raising."""

    def __init__(self, dataset: InstanceDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor | None, dict[str, Any]]:
        try:
            return self.dataset[index]
        except AnnotationsLost as error:
            raise InputError(str(error)) from error
        except (ValueError, OSError) as error:
            return None, {"unreadable": [str(error)]}


class SeededItems(Dataset):
    """Dataset whose random transforms depend on seed, epoch and image, not on the worker that loads an item.

    An unreadable image is replaced by the next readable one, so that batches stay full and processes in step. The
    target then holds the reason under "unreadable". With `keep_seeds`, every target holds a "seed" for
    `transform_seeded`.
    """

    tries = 20

    def __init__(self, dataset: InstanceDataset, seed: int, keep_seeds: bool = False):
        self.items, self.seed, self.keep_seeds = MarkedItems(dataset), seed, keep_seeds

    def __getitem__(self, key: tuple[int, ...]) -> tuple[Tensor, dict[str, Any]]:
        """Load the item for (epoch, index), or (epoch, index, n) for the n-th repetition of an image in the epoch."""
        epoch, index, *again = key
        notes: dict[str, Any] = {}
        for chosen in [(index + i) % len(self.items) for i in range(self.tries)]:
            seed = mix_seed(self.seed, epoch, chosen, *again)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                image, target = self.items[chosen]
            if image is not None:
                return image, target | notes | ({"seed": seed} if self.keep_seeds else {})
            notes.setdefault("unreadable", []).extend(target["unreadable"])
        raise InputError(f"{notes['unreadable'][0]}; nor can the {self.tries - 1} images after it be read")


def transform_seeded(transform: Callable[[Sequence], tuple], batch: Sequence[tuple[Tensor, dict]]) -> tuple:
    """Transform a batch. Its random draws depend only on the "seed" of each item, whichever worker loads the batch."""
    seeds = [target.pop("seed") for _, target in batch]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix_seed(*seeds))
        return transform(batch)


def mix_seed(*numbers: int) -> int:
    """Mix several numbers into one 63-bit seed. Equal numbers give equal seeds, and close ones unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def repeat_factors(classes: Sequence[Sequence[int]], threshold: float) -> np.ndarray:
    """Return the repeat factor of each image, float64 [images]: how often an epoch shows the image on average.

    Images of rare classes are repeated (Gupta et al., "LVIS", arXiv:1908.03195, appendix B.2): a class in a share f of
    the images has the factor max(1, sqrt(threshold / f)), an image the largest factor of its classes, and an image
    without objects the factor 1.
    """
    images_with = Counter(c for found in classes for c in set(found))
    factors = {c: max(1.0, (threshold * len(classes) / count) ** 0.5) for c, count in images_with.items()}
    return np.array([max((factors[c] for c in found), default=1.0) for found in classes])


class AspectRatioBatchSampler:
    """Sampler of batches of images with similar aspect ratios, to reduce padding. It yields lists of (epoch, index).

    All processes draw the same batches from seed and epoch, and each takes every world_size-th batch. The leftovers of
    all groups are batched together. The last batch and the last round of batches are filled up from the start of the
    epoch, so that all batches are full and all processes have the same number of batches.

    Args:
        ratios: width / height of each image.
        group_factor: number of groups per factor of 2 in the ratio, from 1/2 to 2; below 1 there is one group.
        repeats: how often an epoch shows each image on average, at least once; None: once. An image's second appearance
            in an epoch is (epoch, index, 1), so that it is augmented differently.
    """

    def __init__(
        self, ratios: list[float], batch_size: int, group_factor: int, seed: int, rank: int = 0, world_size: int = 1,
        repeats: np.ndarray | None = None,
    ):  # fmt: skip
        if not ratios:
            raise InputError("the training set has no image with a usable object")
        edges = 2 ** np.linspace(-1, 1, 2 * group_factor + 1) if group_factor > 0 else np.zeros(0)
        self.groups = np.digitize(ratios, edges)
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.repeats = np.ones(len(ratios)) if repeats is None else repeats
        self.number = -(-math.ceil(self.repeats.sum()) // batch_size)  # of batches per epoch, before the last round
        self.start_at(0)

    def __len__(self) -> int:
        """Return the number of this process's batches in a full epoch."""
        return -(-self.number // self.world_size)

    def start_at(self, epoch: int, batch: int = 0) -> None:
        """Set the epoch to draw next, and how many of this process's batches to skip at the start of the epoch."""
        self.epoch, self.first_batch = epoch, batch

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        batches = self.batches()[self.rank :: self.world_size]
        yield from ([(self.epoch, *key) for key in batch] for batch in batches[self.first_batch :])

    def order(self) -> list[tuple[int, ...]]:
        """Return the epoch's images in random order, as (index,), or (index, n) for the n-th repetition of an image.

        The sampling is systematic: an image appears as often as its factor, rounded up or down, and on average exactly.
        """
        rng = np.random.default_rng([self.seed, self.epoch])
        shuffled = rng.permutation(len(self.groups))
        if (self.repeats == 1).all():
            return [(i,) for i in shuffled.tolist()]
        ends = np.floor(self.repeats[shuffled].cumsum() + rng.random()).astype(int)
        counts = np.diff(ends, prepend=0)
        keys = [(i, n) if n else (i,) for i, count in zip(shuffled.tolist(), counts.tolist()) for n in range(count)]
        return [keys[i] for i in rng.permutation(len(keys)).tolist()]

    def batches(self) -> list[list[tuple[int, ...]]]:
        order, waiting, batches = self.order(), dict[int, list[tuple[int, ...]]](), list[list[tuple[int, ...]]]()
        for key in order:
            group = waiting.setdefault(int(self.groups[key[0]]), [])
            group.append(key)
            if len(group) == self.batch_size:
                batches.append(group.copy())
                group.clear()
        left = [key for group in sorted(waiting) for key in waiting[group]]
        left += islice(cycle(order), -len(left) % self.batch_size)
        batches += [left[i : i + self.batch_size] for i in range(0, len(left), self.batch_size)]
        # If the sum of the factors was rounded down, there may be one batch less than in other epochs.
        batches = list(islice(cycle(batches), self.number))
        return batches + list(islice(cycle(batches), -len(batches) % self.world_size))
