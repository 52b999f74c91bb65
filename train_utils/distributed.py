"""One process or many: starting and leaving the process group, who am I, and gathering what each one found.

Everything here also works in a single process that never heard of a group.
"""
import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from train_utils.errors import InputError


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
def process_group(args: Namespace) -> Iterator[None]:
    """Join the group that torchrun (or `--dist-url`, `--world-size` and the variable RANK) describes, and leave it.

    nccl on CUDA, gloo on the CPU; each process takes the GPU of its local rank among the visible ones.
    """
    if "WORLD_SIZE" in os.environ:
        world, my_rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    elif args.world_size == 1:
        yield  # started without torchrun: a group of one is no group
        return
    elif "RANK" in os.environ and args.dist_url != "env://":
        world, my_rank = args.world_size, int(os.environ["RANK"])
    else:
        raise InputError(
            "--world-size without torchrun wants --dist-url tcp://HOST:PORT and the variable RANK for each process; "
            "simpler: torchrun --nproc_per_node=N train_multi_GPU.py"
        )
    backend = "gloo"
    if args.device.startswith("cuda") and torch.cuda.is_available():
        local_rank = int(os.environ.get("LOCAL_RANK", my_rank % torch.cuda.device_count()))
        if local_rank >= torch.cuda.device_count():
            raise InputError(
                f"process {local_rank} of this machine has no GPU: {torch.cuda.device_count()} are visible; "
                "lower --nproc_per_node"
            )
        torch.cuda.set_device(local_rank)
        args.device, backend = f"cuda:{local_rank}", "nccl"
    dist.init_process_group(backend, init_method=args.dist_url, world_size=world, rank=my_rank)
    try:
        yield
    finally:
        dist.destroy_process_group()


def gather_objects(value: Any) -> list[Any] | None:
    """Every process's value, in the order of ranks, on the main process; None on the others."""
    if not dist.is_initialized():
        return [value]
    values = [None] * world_size() if is_main() else None
    dist.gather_object(value, values)
    return values


def from_main(value: Any) -> Any:
    """The main process's value, on every process."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def share_buffers(model: nn.Module) -> None:
    """Give every process the main one's buffers: running means differ, as each process saw other pictures."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def mean_over_processes(value: float, device: torch.device) -> float:
    """The mean of one number over all processes."""
    if not dist.is_initialized():
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.item() / world_size()
