"""Compute the machine's limit: the required floating-point operations at its measured rate of matrix products."""

import time
from collections.abc import Callable

import torch
from measured_rows import compared
from torch.utils.flop_counter import FlopCounterMode

SIDE = 4096  # of the matrices: large enough that a product runs at the full rate of the processor or GPU
PRODUCTS = 6


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Measure the floating-point operations per second of `torch.mm`, the best of several products."""
    a, b = (torch.rand(SIDE, SIDE, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(PRODUCTS + 1):  # the first is a warm-up
        start = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * SIDE**3 / min(seconds[1:])


def operations(run: Callable[[], object]) -> int:
    """Count the floating-point operations of a call's convolutions and matrix products, forward and backward.

    The rest (RoIAlign, normalisation, activations, losses) needs so few that it is ignored.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def against_limit(what: str, seconds: float, flop: int, rate: float, to_reach: float | None) -> tuple:
    """Return a row for `report.table` with the limit as the peer, so that the ratio is the reached share of it."""
    limit = flop / rate
    return compared(
        f"{what}; the limit: {flop / 1e9:,.0f} GFLOP at {rate / 1e9:,.0f} GFLOP/s",
        f"{1000 * seconds:.1f} ms", f"{1000 * limit:.1f} ms", limit / seconds, to_reach,
    )  # fmt: skip
