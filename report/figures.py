"""Compute the bars of the page's charts, which page/charts.html draws."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from report.average_precision import Calibration, Group
from report.data_statistics import DataStatistics

LAST = 1_000_000  # upper end of a histogram's last bin, which its label omits
# Name in DataStatistics, title, edges of the bins, axis label, names of the bins, explanation.
HISTOGRAMS = (
    (
        "per_image", "Objects per image", (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, LAST), "objects per image",
        "0 1 2 3 4-5 6-7 8-11 12-15 16-23 24-31 32+",
        "Each bar is the share of images%s with that number of objects.",
    ),
    (
        "sizes", "Sizes of objects", (0, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, LAST),
        "square root of the area, px from", "0 8 16 24 32 48 64 96 128 192 256 384",
        "Each bar is the share of objects%s from that size up to the next; COCO's medium is from 32 to 96 pixels.",
    ),
    (
        "shapes", "Shapes of boxes", (0, 0.2, 0.33, 0.5, 0.67, 0.83, 1.2, 1.5, 2, 3, 5, LAST), "width to height, from",
        "0 1:5 1:3 1:2 2:3 1:1 1.2:1 1.5:1 2:1 3:1 5:1",
        "Each bar is the share of boxes%s from that ratio up to the next.",
    ),
)  # fmt: skip


class Bar(NamedTuple):
    """The bars above a tick of the axis, one per series."""

    tick: Sequence[str]  # lines of text
    heights: Sequence[float]
    text: str = ""  # above the bar


class Chart(NamedTuple):
    bars: list[Bar]
    across: str  # label of the axis
    upwards: str
    top: float  # upper end of the axis


def calibration_chart(found: Calibration) -> Chart:
    """Chart the share of correct detections over their scores, with the number of detections above each bar."""
    number = len(found.counts)
    bars = [
        Bar([f"{k / number:.1f}"], [right], short(count) if count else "")
        for k, (right, count) in enumerate(zip(np.nan_to_num(found.right).tolist(), found.counts.tolist()))
    ]
    return Chart(bars, "score, from", "share that is right", 1)


def cost_chart(costs: Mapping[str, float]) -> Chart:
    """Chart how much AP50 rises if the errors of each kind are repaired."""
    bars = [Bar([name], [max(100 * cost, 0)], f"{100 * cost:.1f}") for name, cost in costs.items()]
    return Chart(bars, "kind of error", "points of AP50 to be gained", round_top(bars))


def group_chart(groups: Sequence[Group], label: str) -> Chart:
    """Chart the AP of each group, with its number of objects below."""
    names = [g.name.replace("under ", "<").replace("over ", ">").replace(" and more", "+") for g in groups]
    bars = [
        Bar([name, f"n={short(g.objects)}"], [float(np.nan_to_num(g.ap))], "–" if math.isnan(g.ap) else f"{g.ap:.2f}")
        for name, g in zip(names, groups)
    ]
    return Chart(bars, label, "AP", 1)


def histograms(splits: Mapping[str, DataStatistics]) -> list[tuple[Chart, str, str]]:
    """Return chart, title and explanation of the histograms, in percent, of one or two splits, side by side."""
    beside, charts = " beside those of training" if "training" in splits else "", []
    for name, title, edges, label, ticks, reading in HISTOGRAMS:
        shares = []
        for values in (getattr(of_split, name) for of_split in splits.values()):
            bins = (np.searchsorted(edges, values, side="right") - 1).clip(0, len(edges) - 2)
            shares.append(100 * np.bincount(bins, minlength=len(edges) - 1) / max(len(values), 1))
        bars = [Bar([tick], heights) for tick, heights in zip(ticks.split(), np.stack(shares, axis=1).tolist())]
        charts.append((Chart(bars, label, "percent", round_top(bars)), title, reading % beside))
    return charts


def round_top(bars: Sequence[Bar]) -> float:
    """Return a round number, at least 1, that is above all bars."""
    highest = max(1.0, *(height for bar in bars for height in bar.heights))
    power = 10 ** math.floor(math.log10(highest))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= highest)


def short(number: int) -> str:
    """Abbreviate a number: 1234 -> "1.2k"."""
    return str(number) if number < 1000 else f"{number / 1000:.1f}k" if number < 10_000 else f"{number // 1000}k"
