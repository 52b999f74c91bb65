"""Time several ways to do the same thing alternately, and format figures as rows of a Markdown table."""

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

HEADER = ("", "this project", "peer", "ratio", "to reach", "reached")
SIDE, PRODUCTS = 4096, 6  # matrices large enough that a product runs at the full rate of the processor or GPU


def in_turns(
    ways: Mapping[str, Callable[[], Any]], rounds: int, prepare: Callable[[str], None] = lambda name: None
) -> dict[str, list[float]]:
    """Time all ways alternately in one run, so that other load on the machine slows all of them alike.

    Each runs once to warm up, then once per round, in an order that reverses from round to round.

    Args:
        prepare: called, untimed, with the name of the way that runs next.

    Returns:
        Seconds per round, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(-1, rounds):
        for name in list(ways)[:: 1 if i % 2 == 0 else -1]:
            prepare(name)
            synchronize()
            start = time.perf_counter()
            ways[name]()
            synchronize()
            if i >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def ratio(own: Sequence[float], peer: Sequence[float]) -> float:
    """The median over the rounds of the peer's time divided by the own time."""
    return statistics.median(theirs / ours for ours, theirs in zip(own, peer))


def timed(what: str, own: Callable[[], Any], peer: Callable[[], Any], rounds: int, to_reach: float | None) -> tuple:
    """Return a row with the milliseconds of both."""
    progress(what)
    seconds = in_turns({"own": own, "peer": peer}, rounds)
    times = (milliseconds(statistics.median(each)) for each in seconds.values())
    return compared(what, *times, ratio(*seconds.values()), to_reach)


def compared(what: str, own: str, peer: str, ratio: float, to_reach: float | None) -> tuple:
    """Return a row; `ratio` is how many times better the own figure is, `to_reach` the goal for it, if any."""
    goal = ("", "") if to_reach is None else (f"{to_reach:g}x", "yes" if ratio >= to_reach else "no")
    return (what, own, peer, f"{ratio:.1f}x" if ratio >= 2 else f"{ratio:.2f}x", *goal)


def table(title: str, rows: Sequence[tuple], header: Sequence[str] = HEADER) -> str:
    """Format rows as a Markdown table."""
    lines = [(title, *header[1:]), ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 10 else f"{seconds:.1f} s"


def megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"


def progress(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Measure the machine's limit: floating-point operations per second of `torch.mm`, the best of several products."""
    a, b = (torch.rand(SIDE, SIDE, device=device).to(dtype) for _ in range(2))
    return 2 * SIDE**3 / min(in_turns({"product": lambda: torch.mm(a, b)}, PRODUCTS)["product"])


def in_child(run: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a separate process, which then ends with all its memory; return its result."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def work() -> None:
        torch.set_num_threads(1)  # the threads of this process do not exist in a fork
        results.put(run(*arguments))

    child = context.Process(target=work)
    child.start()
    result = results.get()
    child.join()
    return result
