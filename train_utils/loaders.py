"""Data loaders whose order of items depends on seed and epoch alone."""

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dataset_files.dataset import InstanceDataset
from train_utils.distributed import rank, world_size
from train_utils.errors import InputError, reading_input
from train_utils.run.signals import leave_signals_to_the_main_process


def fingerprint(dataset: InstanceDataset) -> str:
    """Summarise a training set in a string that changes with its images or classes."""
    sizes = np.array([dataset.get_height_and_width(i) for i in range(len(dataset))], dtype=np.int64)
    names = repr(sorted(dataset.class_names.items())).encode()
    # Checkpoints store this text: with other words none could be resumed.
    return f"{len(dataset)} pictures, check sum {zlib.crc32(sizes.tobytes(), zlib.crc32(names)):08x}"


def training_loader(
    dataset: InstanceDataset,
    batch_size: int,
    group_factor: int,
    workers: int | None,
    seed: int,
    pin_memory: bool,
    mix: Callable[[Sequence], tuple] | None = None,
) -> "TrainingLoader":
    """Load batches (images, targets) of similar aspect ratio: this process's share of every epoch.

    Args:
        mix: a transform of whole batches, which collates them, in place of the dataset's `collate_fn`.
    """
    ratios = [w / h for h, w in (dataset.get_height_and_width(i) for i in range(len(dataset)))]
    sampler = AspectRatioBatchSampler(ratios, batch_size, group_factor, seed, rank(), world_size())
    return TrainingLoader(
        SeededItems(dataset, seed, keep_seeds=mix is not None),
        batch_sampler=sampler,
        num_workers=default_workers() if workers is None else workers,
        collate_fn=dataset.collate_fn if mix is None else SeededMix(mix),
        pin_memory=pin_memory,
        worker_init_fn=leave_signals_to_the_main_process,
    )


def evaluation_loader(dataset: InstanceDataset, batch_size: int, workers: int | None) -> DataLoader:
    """Load this process's share of the images; each image is in one process only.

    The batches do not depend on the number of processes, and so neither do the metrics: an image's padding, and with
    it the last digits of its detections, depend on the other images of its batch.
    """
    batches = [list(range(i, min(i + batch_size, len(dataset)))) for i in range(0, len(dataset), batch_size)]
    return DataLoader(
        MarkedItems(dataset),
        batch_sampler=batches[rank() :: world_size()],
        num_workers=default_workers() if workers is None else workers,
        collate_fn=dataset.collate_fn,
        worker_init_fn=leave_signals_to_the_main_process,
    )


def default_workers() -> int:
    """Number of loader workers per training process: the cores that it may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // world_size()))


class TrainingLoader(DataLoader):
    """A loader of training batches, whose sampler says where in which epoch it begins."""

    batch_sampler: "AspectRatioBatchSampler"


class CheckedItems(Dataset):
    """Items of a dataset; an unreadable one raises InputError, also in a loader worker."""

    def __init__(self, dataset: InstanceDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def item(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        with reading_input():
            return self.dataset[index]


class MarkedItems(CheckedItems):
    """Items of a dataset; an unreadable one is (None, {"unreadable": [reason]})."""

    def __getitem__(self, index: int) -> tuple[Tensor | None, dict[str, Any]]:
        try:
            return self.item(index)
        except InputError as error:
            return None, {"unreadable": [str(error)]}


class SeededItems(CheckedItems):
    """Items whose random transforms depend on seed, epoch and image, not on the worker that loads them.

    An unreadable image is replaced by the next readable one, so that batches stay full and processes in step; its
    target holds the reason under "unreadable".
    """

    tries = 20

    def __init__(self, dataset: InstanceDataset, seed: int, keep_seeds: bool = False):
        """Args: keep_seeds: store the seed of each item's draws in its target, for `SeededMix`."""
        super().__init__(dataset)
        self.seed = seed
        self.keep_seeds = keep_seeds

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, dict[str, Any]]:
        """Load the item for (epoch, index)."""
        epoch, index = key
        unreadable = []
        for chosen in [(index + i) % len(self) for i in range(self.tries)]:
            try:
                seed = mix_seed(self.seed, epoch, chosen)
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    image, target = self.item(chosen)
            except InputError as error:
                unreadable.append(str(error))
            else:
                notes: dict[str, Any] = {"unreadable": unreadable} if unreadable else {}
                return image, target | notes | ({"seed": seed} if self.keep_seeds else {})
        raise InputError(f"{unreadable[0]}; nor can the {self.tries - 1} images after it be read")


class SeededMix:
    """A transform of whole batches whose draws depend on the seeds of the batch's items, not on the worker."""

    def __init__(self, mix: Callable[[Sequence], tuple]):
        self.mix = mix

    def __call__(self, batch: Sequence[tuple[torch.Tensor, dict]]) -> tuple:
        seeds = [target.pop("seed") for _, target in batch]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix_seed(*seeds))
            return self.mix(batch)


def mix_seed(*numbers: int) -> int:
    """Mix several numbers into one 63-bit seed; equal numbers give equal seeds, close ones unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


class AspectRatioBatchSampler:
    """Batches of (epoch, index) of images with similar aspect ratios, so that little is lost to padding.

    All processes draw the same batches from seed and epoch, and each takes every world_size-th of them. The leftovers
    of all groups are batched together; the last batch, and the last round of batches, are filled up with images from
    the epoch's start, so that all batches are full and all processes have the same number of them.

    Args:
        ratios: width / height of each image.
        group_factor: number of groups per factor of 2 in the ratio, from 1/2 to 2; below 1 there is one group.
    """

    def __init__(
        self, ratios: list[float], batch_size: int, group_factor: int, seed: int, rank: int = 0, world_size: int = 1
    ):
        if not ratios:
            raise InputError("the training set has no image with a usable object")
        edges = 2 ** np.linspace(-1, 1, 2 * group_factor + 1) if group_factor > 0 else np.zeros(0)
        self.groups = np.digitize(ratios, edges)
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.first_batch = 0

    def __len__(self) -> int:
        """Number of this process's batches in a whole epoch."""
        batches = -(-len(self.groups) // self.batch_size)
        return -(-batches // self.world_size)

    def start_at(self, epoch: int, batch: int = 0) -> None:
        """Set the epoch to draw next, and how many of this process's batches to skip at its start."""
        self.epoch = epoch
        self.first_batch = batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batches = self.batches()[self.rank :: self.world_size]
        yield from ([(self.epoch, int(i)) for i in batch] for batch in batches[self.first_batch :])

    def batches(self) -> list[list[int]]:
        """Draw the batches of all processes for the epoch."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.groups)).tolist()
        waiting: dict[int, list[int]] = {}
        batches = []
        for i in order:
            group = waiting.setdefault(int(self.groups[i]), [])
            group.append(i)
            if len(group) == self.batch_size:
                batches.append(group.copy())
                group.clear()
        left = [i for group in sorted(waiting) for i in waiting[group]]
        left += islice(cycle(order), -len(left) % self.batch_size)
        batches += [left[i : i + self.batch_size] for i in range(0, len(left), self.batch_size)]
        return batches + list(islice(cycle(batches), -len(batches) % self.world_size))
