"""The machine's limit: its measured rate of matrix products over the floating-point operations that are needed."""
import time
from collections.abc import Callable

import torch
from report import compared
from torch.utils.flop_counter import FlopCounterMode

SIDE = 4096  # of the matrices: large enough that a product takes the processor's or GPU's full rate
PRODUCTS = 6


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations a second of `torch.mm`, the best of several products."""
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
    """Floating-point operations of the convolutions and matrix products, back as well, that a call does.

    The rest (RoIAlign, normalisations, activations, losses) does so few that it is left out.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def against_limit(what: str, seconds: float, flop: int, rate: float, to_reach: float | None) -> tuple:
    """A row for `report.table` with the limit as the peer, so that the ratio is the share of it that is reached."""
    limit = flop / rate
    return compared(
        f"{what}; the limit: {flop / 1e9:,.0f} GFLOP at {rate / 1e9:,.0f} GFLOP/s",
        f"{1000 * seconds:.1f} ms", f"{1000 * limit:.1f} ms", limit / seconds, to_reach,
    )  # fmt: skip
