"""Loaders of datasets, with an order of items that depends on seed and epoch alone."""
import os
import zlib
from collections.abc import Iterator
from itertools import cycle, islice

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dataset_files.dataset import InstanceDataset
from train_utils.distributed import rank, world_size
from train_utils.errors import InputError, reading_input
from train_utils.run.signals import leave_signals_to_the_main_process


def fingerprint(dataset: InstanceDataset) -> str:
    """What a training set holds, in a word: other pictures or classes give another one."""
    sizes = np.array([dataset.get_height_and_width(i) for i in range(len(dataset))], dtype=np.int64)
    names = repr(sorted(dataset.class_names.items())).encode()
    return f"{len(dataset)} pictures, check sum {zlib.crc32(sizes.tobytes(), zlib.crc32(names)):08x}"


def training_loader(
    dataset: InstanceDataset, batch_size: int, group_factor: int, workers: int | None, seed: int, pin_memory: bool
) -> DataLoader:
    """Batches (images, targets) of pictures of similar shape, this process's share of every epoch."""
    ratios = [w / h for h, w in (dataset.get_height_and_width(i) for i in range(len(dataset)))]
    sampler = AspectRatioBatchSampler(ratios, batch_size, group_factor, seed, rank(), world_size())
    return DataLoader(
        SeededItems(dataset, seed),
        batch_sampler=sampler,
        num_workers=default_workers() if workers is None else workers,
        collate_fn=dataset.collate_fn,
        pin_memory=pin_memory,
        worker_init_fn=leave_signals_to_the_main_process,
    )


def evaluation_loader(dataset: InstanceDataset, batch_size: int, workers: int | None) -> DataLoader:
    """This process's share of the pictures, each picture in one process only.

    The batches are the same whatever the number of processes, and with them the numbers: a picture's padding, and
    so its detections in the last digits, depend on what it is batched with.
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
    """Loader processes for each training process: the cores it may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // world_size()))


class CheckedItems(Dataset):
    """A dataset's items; one that cannot be read is an InputError, also in a loader worker."""

    def __init__(self, dataset: InstanceDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        with reading_input():
            return self.dataset[index]


class MarkedItems(CheckedItems):
    """Items of which one that cannot be read is (None, {"unreadable": [why]})."""

    def __getitem__(self, index: int):
        try:
            return super().__getitem__(index)
        except InputError as error:
            return None, {"unreadable": [str(error)]}


class SeededItems(CheckedItems):
    """Items whose random transforms depend on seed, epoch and picture, not on the worker that loads them.

    In place of a picture that cannot be read stands the next one that can, so that batches stay full and processes
    in step; its target says why under "unreadable".
    """

    tries = 20

    def __init__(self, dataset: InstanceDataset, seed: int):
        super().__init__(dataset)
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]):
        """The item for (epoch, index)."""
        epoch, index = key
        unreadable = []
        for chosen in [(index + i) % len(self) for i in range(self.tries)]:
            try:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(mix_seed(self.seed, epoch, chosen))
                    image, target = super().__getitem__(chosen)
            except InputError as error:
                unreadable.append(str(error))
            else:
                return image, target | {"unreadable": unreadable} if unreadable else target
        raise InputError(f"{unreadable[0]}; nor can the {self.tries - 1} pictures after it be read")


def mix_seed(*numbers: int) -> int:
    """One 63-bit seed out of several numbers; equal numbers give equal seeds, near ones unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


class AspectRatioBatchSampler:
    """Batches of (epoch, index) of pictures of similar shape, so that little is lost to padding.

    All processes draw the same batches from seed and epoch and take every world_size-th of them. What is left over
    in a group joins the leftovers of others; the last batch is filled up, and the last round of batches too, with
    pictures from the epoch's start, so that all batches are full and all processes have equally many.

    Args:
        ratios: width over height of each picture.
        group_factor: groups to a factor of 2 in the ratio are 2 ** (1 / group_factor) wide, from 1/2 to 2;
            below 1 there is one group.
    """

    def __init__(
        self, ratios: list[float], batch_size: int, group_factor: int, seed: int, rank: int = 0, world_size: int = 1
    ):
        if not ratios:
            raise InputError("the training set holds no picture with a usable object")
        edges = 2 ** np.linspace(-1, 1, 2 * group_factor + 1) if group_factor > 0 else []
        self.groups = np.digitize(ratios, edges)
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.first_batch = 0

    def __len__(self) -> int:
        """Batches of this process in a whole epoch."""
        batches = -(-len(self.groups) // self.batch_size)
        return -(-batches // self.world_size)

    def start_at(self, epoch: int, batch: int = 0) -> None:
        """Which epoch to draw next, and how many of this process's batches to leave out at its start."""
        self.epoch = epoch
        self.first_batch = batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batches = self.batches()[self.rank :: self.world_size]
        yield from ([(self.epoch, int(i)) for i in batch] for batch in batches[self.first_batch :])

    def batches(self) -> list[list[int]]:
        """All processes' batches of the epoch."""
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
