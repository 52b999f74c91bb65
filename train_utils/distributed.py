"""One process or many: starting and leaving the process group, who am I, and gathering what each one found.

Everything here also works in a single process that never heard of a group.
"""
import inspect
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train_utils.errors import WRONG_INPUT, InputError
from train_utils.options import TrainSettings
from train_utils.run.watchdog import Watchdog, is_broken_connection

T = TypeVar("T")
watchdogs: list[Watchdog] = []  # this process's, while it is in a group


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def process_group(settings: TrainSettings) -> Iterator[None]:
    """Join the group that torchrun (or `--dist-url`, `--world-size` and the variable RANK) describes, and leave it.

    nccl on CUDA, gloo on the CPU; each process takes the GPU of its local rank among the visible ones.
    """
    if "WORLD_SIZE" in os.environ:
        world, my_rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    elif settings.world_size == 1:
        yield  # started without torchrun: a group of one is no group
        return
    elif "RANK" in os.environ and settings.dist_url != "env://":
        world, my_rank = settings.world_size, int(os.environ["RANK"])
    else:
        raise InputError(
            "--world-size without torchrun wants --dist-url tcp://HOST:PORT and the variable RANK for each process; "
            "simpler: torchrun --nproc_per_node=N train_multi_GPU.py"
        )
    backend = "gloo"
    if settings.device.startswith("cuda") and torch.cuda.is_available():
        local_rank = int(os.environ.get("LOCAL_RANK", my_rank % torch.cuda.device_count()))
        if local_rank >= torch.cuda.device_count():
            raise InputError(
                f"process {local_rank} of this machine has no GPU: {torch.cuda.device_count()} are visible; "
                "lower --nproc_per_node"
            )
        torch.cuda.set_device(local_rank)
        settings.device, backend = f"cuda:{local_rank}", "nccl"
    # The watch comes first, since it can say who is missing.
    patience = timedelta(seconds=settings.timeout + 60)
    store, my_rank, world = next(dist.rendezvous(settings.dist_url, my_rank, world, timeout=patience))
    store = fresh_part(store, my_rank, world)
    dist.init_process_group(backend, store=store, world_size=world, rank=my_rank, timeout=patience)
    watch = Watchdog(store, my_rank, world, settings.timeout)
    watchdogs.append(watch)
    watch.start()
    try:
        yield
        dist.barrier()
        watch.leave()
        dist.destroy_process_group()
    except BaseException as error:
        if isinstance(error, RuntimeError) and is_broken_connection(error):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, which comes before the explanation
            watch.end(watch.explain())
        watch.leave(f"{type(error).__name__} {error}")
        raise
    finally:
        watchdogs.clear()


def report_activity(doing: str, step: int | None = None) -> None:
    """Tell the other processes where this one stands; see watch.DOING."""
    for watch in watchdogs:
        watch.report_activity(doing, step)


def fresh_part(store: dist.Store, my_rank: int, world: int) -> dist.Store:
    """A part of the store in which nothing stands yet, the same for all processes.

    torchrun's store outlives the processes that it starts again: what the dead ones left there, their addresses
    above all, must not be taken for the new ones'. So each says hello under a new name, and waits until the main one
    has answered that very name.
    """
    me = uuid.uuid4().hex
    store.set(f"hello/{my_rank}", me)
    if my_rank != 0:
        part = store.get(f"answer/{me}").decode()
        store.set(f"thanks/{part}/{my_rank}", "")
        return dist.PrefixStore(part, store)
    unanswered = set(range(1, world))
    while unanswered:
        for other in sorted(unanswered):
            if store.check([f"hello/{other}"]):
                store.set(f"answer/{store.get(f'hello/{other}').decode()}", me)
        unanswered = {other for other in unanswered if not store.check([f"thanks/{me}/{other}"])}
        time.sleep(0.05)
    return dist.PrefixStore(me, store)


def in_parallel(model: nn.Module, device: torch.device, fixed_buckets: bool) -> nn.Module:
    """The model as a training step calls it: with several processes, wrapped so that gradients become their means.

    Running means are not kept equal at every step: evaluation and checkpoints take the main process's.

    Args:
        fixed_buckets: leave gradients in the buckets in which they are first summed up. By default the order of a
            process's first step gives new ones, so that in a resumed run of three or more processes the sums are
            rounded otherwise.
    """
    if world_size() == 1:
        return model
    device_ids = [device.index] if device.type == "cuda" else None
    newer = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    apart = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
    return DistributedDataParallel(model, device_ids=device_ids, find_unused_parameters=fixed_buckets, **apart)


@torch.inference_mode(False)  # until torch 2.5, gloo cannot write into tensors that are made in inference mode
def gather_objects(value: Any) -> list[Any] | None:
    """Every process's value, in the order of ranks, on the main process; None on the others."""
    if not dist.is_initialized():
        return [value]
    values = [None] * world_size() if is_main() else None
    dist.gather_object(value, values)
    return values


def broadcast_from_main(value: Any) -> Any:
    """The main process's value, on every process."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def run_on_main(work: Callable[[], T]) -> T | None:
    """Do on the main process what the others wait for; its value there, None on them.

    An InputError on the main process ends them all: it says why, the others just end with the same status.
    """
    value = error = None
    if is_main():
        try:
            value = work()
        except InputError as caught:
            error = caught
    failed = broadcast_from_main(error is not None)
    if error is not None:
        raise error
    if failed:
        sys.exit(WRONG_INPUT)
    return value


def share_buffers(model: nn.Module) -> None:
    """Give every process the main one's buffers: running means differ, as each process saw other pictures."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def sum_over_processes(values: Tensor) -> list[float]:
    """Float [N] -> N sums over all processes; reading them is the one time that a step waits for the device."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values.tolist()
