"""Join and leave the process group, and exchange values between processes; works in a single process, too."""

import inspect
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train_utils.errors import WRONG_INPUT, InputError, is_out_of_memory, reading_input
from train_utils.options import TrainSettings, ValidationSettings
from train_utils.run.watchdog import Watchdog, is_broken_connection

T = TypeVar("T")
watchdogs: list[Watchdog] = []  # this process's watchdog while it is in a group
cut_off = False  # whether this process takes no part in collectives, see `without_others`


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def is_connected() -> bool:  # whether this process exchanges values with others
    return dist.is_initialized() and not cut_off


@contextmanager
def without_others() -> Iterator[None]:
    """Context in which the functions of this file act as in a single process, while the other processes wait."""
    global cut_off
    cut_off = True
    try:
        yield
    finally:
        cut_off = False


def barrier() -> None:
    if is_connected():
        dist.barrier()


@contextmanager
def process_group(settings: TrainSettings | ValidationSettings) -> Iterator[None]:
    """Context in which this process belongs to the run's process group; a single process needs no group.

    torchrun describes the group, or else `--dist-url`, `--world-size` and the variable RANK do. gloo serves CPU
    tensors, nccl GPU tensors. Each process uses the GPU of its local rank.
    """
    if {"WORLD_SIZE", "RANK", "MASTER_ADDR"} <= os.environ.keys():
        world, my_rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    elif settings.world_size == 1:
        yield  # started without torchrun: one process needs no group
        return
    elif "RANK" in os.environ and settings.dist_url != "env://":
        world, my_rank = settings.world_size, int(os.environ["RANK"])
    else:
        raise InputError(
            "--world-size without torchrun requires --dist-url tcp://HOST:PORT and the variable RANK in each process; "
            "simpler: torchrun --nproc_per_node=N train_multi_GPU.py"
        )
    backend, bound = "gloo", dict[str, Any]()
    if settings.device.startswith("cuda") and torch.cuda.is_available():
        local_rank = int(os.environ.get("LOCAL_RANK", my_rank % torch.cuda.device_count()))
        if local_rank >= torch.cuda.device_count():
            raise InputError(
                f"process {local_rank} of this machine has no GPU: only {torch.cuda.device_count()} are visible; "
                "lower --nproc_per_node"
            )
        torch.cuda.set_device(local_rank)
        settings.device, backend = f"cuda:{local_rank}", "cpu:gloo,cuda:nccl"
        bound["device_id"] = torch.device(settings.device)
    # Collectives time out later than the watchdog, which can name the missing process.
    patience = timedelta(seconds=settings.timeout + 60)
    store, my_rank, world = next(dist.rendezvous(settings.dist_url, my_rank, world, timeout=patience))
    store = fresh_namespace(store, my_rank, world)
    dist.init_process_group(backend, store=store, world_size=world, rank=my_rank, timeout=patience, **bound)
    watchdog = Watchdog(store, my_rank, world, settings.timeout)
    watchdogs.append(watchdog)
    watchdog.start()
    try:
        yield
        dist.barrier()
        watchdog.leave()
        dist.destroy_process_group()
    except BaseException as error:
        if isinstance(error, RuntimeError) and is_broken_connection(error) and not is_out_of_memory(error):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher sends it before the cause is known
            watchdog.end(watchdog.explain())
        watchdog.leave(f"{type(error).__name__} {error}")
        raise
    finally:
        watchdogs.clear()


def report_activity(activity: str, step: int | None = None) -> None:
    """Report progress to the watchdog; `activity` is one of `watchdog.ACTIVITIES`."""
    for watchdog in watchdogs:
        watchdog.report_activity(activity, step)


def fresh_namespace(store: dist.Store, my_rank: int, world: int) -> dist.Store:
    """Agree with the other processes on a fresh, empty namespace of the store, and return that namespace.

    torchrun's store outlives the processes that it restarts, and still holds entries of dead processes, such as their
    addresses. So each process registers under a new name, and waits until the main process has answered that name.
    """
    me = uuid.uuid4().hex
    store.set(f"hello/{my_rank}", me)
    if my_rank != 0:
        name = store.get(f"answer/{me}").decode()
        store.set(f"thanks/{name}/{my_rank}", "")
        return dist.PrefixStore(name, store)
    unanswered = set(range(1, world))
    while unanswered:
        for other in sorted(unanswered):
            if store.check([f"hello/{other}"]):
                store.set(f"answer/{store.get(f'hello/{other}').decode()}", me)
        unanswered = {other for other in unanswered if not store.check([f"thanks/{me}/{other}"])}
        time.sleep(0.05)
    return dist.PrefixStore(me, store)


def in_parallel(model: nn.Module, device: torch.device, fixed_buckets: bool) -> nn.Module:
    """Wrap the model in DistributedDataParallel if there are several processes.

    Running statistics are not synchronised at every step; evaluation and checkpoints use those of the main process.
    `fixed_buckets` keeps the buckets in which gradients are first summed; else they are rebuilt after a process's first
    step, so that in a resumed run of three or more processes the rounding differs.
    """
    if world_size() == 1:
        return model
    newer = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    apart: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
    # No device_ids: they would copy the targets to the device one by one, and wait for each.
    return DistributedDataParallel(model, find_unused_parameters=fixed_buckets, gradient_as_bucket_view=True, **apart)


def exchange_gradients(parallel: nn.Module, now: bool) -> AbstractContextManager:
    """Context for one forward and backward pass. Gradients are averaged over processes only if `now` is true."""
    return parallel.no_sync() if isinstance(parallel, DistributedDataParallel) and not now else nullcontext()


@torch.inference_mode(False)  # up to torch 2.5, gloo cannot write to inference tensors
def gather_objects(value: Any) -> list[Any] | None:
    """Gather the values of all processes on the main process, in the order of ranks. Return None on the others."""
    if not is_connected():
        return [value]
    values = [None] * world_size() if is_main() else None
    dist.gather_object(value, values)
    return values


def broadcast_from_main(value: Any) -> Any:
    """Return the main process's value on every process."""
    if not is_connected():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def run_on_main(work: Callable[[], T]) -> T | None:
    """Call `work` on the main process while the others wait. Return the value of `work` there, and None elsewhere.

    A ValueError or OSError becomes an InputError that ends all processes: the main process prints it, and all exit
    with its status.
    """
    value = error = None
    if is_main():
        try:
            with reading_input():
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
    """Copy BatchNorm's running statistics and all other buffers from the main process to the other processes."""
    if is_connected():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def all_reduce(values: Tensor) -> Tensor:
    """Sum float [N] over all processes in place, without waiting for the device."""
    if is_connected():
        dist.all_reduce(values)
    return values


class AsyncAllReduce:
    """Sum numbers from the host over all processes in the background, without using or waiting for a GPU."""

    def __init__(self, *numbers: int):
        self.sums = torch.tensor(numbers)
        self.work = dist.all_reduce(self.sums, async_op=True) if is_connected() else None

    def read(self) -> list[int]:
        """Wait for the numbers of all processes and return the sums."""
        if self.work is not None:
            self.work.wait()
        return self.sums.tolist()
