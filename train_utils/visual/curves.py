"""Plot the history of a run: loss and learning rate over the steps, AP over the epochs. No display is needed."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dataset_files.atomic_files import replacing

MOST_TICKS = 14
LOSS_COLOUR, VALIDATION_COLOUR, RATE_COLOUR = "tab:red", "tab:green", "tab:blue"
BOX_COLOUR, MASK_COLOUR = "tab:blue", "tab:orange"


def plot_loss_and_lr(
    losses: Sequence[float], learning_rates: Sequence[float], path: str | os.PathLike,
    steps: Sequence[int] | None = None, epoch_ends: Mapping[int, int] | None = None,
    validation: Mapping[int, float] | None = None,
) -> None:  # fmt: skip
    """Write a PNG of the loss (left axis: raw and smoothed) and the learning rate (right axis) over the logged steps.

    Args:
        losses: one per logged step. A loss that is not finite leaves a gap in the line and a mark on the bottom axis.
        learning_rates, steps: of the same steps, and their numbers; by default 1, 2, 3, ...
        epoch_ends: epoch -> its last step, shown on the top axis.
        validation: step -> validation loss after that step.
    """
    numbers = np.arange(1, len(losses) + 1) if steps is None else np.asarray(steps)
    loss, rate = with_gaps(losses), with_gaps(learning_rates)
    figure, axes = new_figure("step", "loss", points=len(numbers))
    right = axes.twinx()
    right.set_ylabel("learning rate")
    right.yaxis.set_major_formatter("{x:.3g}")
    plot(axes, "loss", numbers, loss, color=LOSS_COLOUR, alpha=0.3, linewidth=0.8)
    smoothed = smooth(loss, window=1 + round(len(loss) ** 0.5 / 2))
    plot(axes, "loss, smoothed", numbers, smoothed, color=LOSS_COLOUR, linewidth=1.6)
    if validation:
        measured = with_gaps(list(validation.values()))
        plot(axes, "validation loss", list(validation), measured, color=VALIDATION_COLOUR, marker="o")
    broken, bottom = numbers[np.isnan(loss)], axes.get_xaxis_transform()
    if len(broken):
        axes.plot(broken, 0 * broken, "kx", transform=bottom, clip_on=False, label="loss not finite")
    plot(right, "learning rate", numbers, rate, color=RATE_COLOUR, linewidth=1.2)
    if np.isfinite(rate).any():
        right.set_ylim(0, 1.1 * np.nanmax(rate) or None)
    if epoch_ends:
        ends = sorted(epoch_ends.items())
        chosen = ends[:: -(-len(ends) // MOST_TICKS)]
        top = axes.secondary_xaxis("top")
        top.set_xlabel("end of epoch")
        top.set_xticks([step for _, step in chosen], [str(epoch) for epoch, _ in chosen])
    # On the right axis, which is drawn last, so that no line crosses the legend.
    right.legend(handles=[*axes.lines, *right.lines], loc="upper right")
    write_png(figure, path)


def plot(axes: Axes, name: str, x: Sequence[int] | np.ndarray, y: np.ndarray, **style: Any) -> None:
    """Plot a line, with a marker if it has a single point and would otherwise be invisible."""
    axes.plot(x, y, label=name, **{"marker": "o" if np.isfinite(y).sum() == 1 else None} | style)


def plot_map(
    epochs: Sequence[int], box_ap: Sequence[float], mask_ap: Sequence[float], path: str | os.PathLike,
    box_ap50: Sequence[float], mask_ap50: Sequence[float],
) -> None:  # fmt: skip
    """Write a PNG of AP and AP50 (dashed) over the epochs. Values that are -1 or not finite leave a gap."""
    figure, axes = new_figure("epoch", "AP", points=len(epochs))
    for label, values, style in (("AP", (box_ap, mask_ap), "-"), ("AP50", (box_ap50, mask_ap50), "--")):
        for kind, of_kind, colour in zip(("box", "mask"), values, (BOX_COLOUR, MASK_COLOUR)):
            known = with_gaps(of_kind)
            known[known < 0] = np.nan
            axes.plot(epochs, known, style, color=colour, label=f"{kind} {label}", marker="o", markersize=4)
    axes.set_ylim(bottom=0)
    axes.legend(loc="best")
    write_png(figure, path)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of the finite values in a centred window of 2 * window + 1 values; NaN if none is finite."""
    if not len(values):
        return values
    known = np.isfinite(values)
    around, inside = np.ones(2 * window + 1), slice(window, window + len(values))
    sums, counts = (np.convolve(each, around)[inside] for each in (np.where(known, values, 0), known))
    return np.where(counts > 0.5, sums / np.maximum(counts, 1), np.nan)


def new_figure(x_label: str, y_label: str, points: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    if not points:
        axes.text(0.5, 0.5, f"no {x_label} yet", transform=axes.transAxes, ha="center")
    return figure, axes


def with_gaps(values: Sequence[float]) -> np.ndarray:
    """Return the values as float64 [S]. Infinities become NaN, where matplotlib leaves a gap in the line."""
    array = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def write_png(figure: Figure, path: str | os.PathLike) -> None:
    """Save a figure as a PNG atomically, so that a file opened during a run is always complete."""
    with replacing(Path(path)) as file:
        figure.savefig(file, format="png")
