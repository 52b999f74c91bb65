"""Draw the report's figures as SVG with the colours and fonts of the page.

Text and lines are drawn in placeholder colours that are then replaced by the page's CSS variables, so that a figure
suits both light and dark pages. No figure contains a class or file name.
"""

import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from report.average_precision import Calibration, Group
from report.data_statistics import DataStatistics

INK = "#010203"
SERIES = ("#010204", "#010205", "#010206")
PAGE_COLOURS = {INK: "currentColor"} | {stand_in: f"var(--series-{n})" for n, stand_in in enumerate(SERIES, start=1)}
STYLES = ("-", "--", ":")
SETTINGS: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    **{f"{part}.color": INK for part in ("text", "xtick", "ytick", "grid")},
    **{f"axes.{part}color": INK for part in ("edge", "label", "title")},
    "grid.alpha": 0.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.framealpha": 0,
}
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
FAMILY = re.compile(r"""font-family: [^;"]*;? ?|(?<=font)(: [\d.]+px) '[^;"]*""")
UNUSED_IDS = re.compile(r'<g id="[^"]*"')
IDS = re.compile(r'(?<= id=")|(?<=href="#)|(?<=url\(#)')
NUMBERS = itertools.count(1)


def precision_recall_figure(curves: np.ndarray) -> Markup:
    """Draw precision over recall at IoU 0.5, at 0.75 and as the mean over all IoUs, float64 [3, 101].

    Each of the 101 values covers 1/101 of the axis, so that the area under the curve is the AP.
    """

    def draw(axes: Axes) -> None:
        for curve, name, colour, style in zip(curves, ("IoU 0.5", "IoU 0.75", "IoU 0.5 to 0.95"), SERIES, STYLES):
            area = float(curve.mean())
            axes.stairs(
                curve, np.linspace(0, 1, 102), baseline=None, color=colour, linestyle=style, linewidth=1.8,
                label=f"{name}: AP {area:.3f}",
            )  # fmt: skip
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        axes.legend(loc="lower left")

    return figure(draw)


def calibration_figure(found: Calibration) -> Markup:
    """Draw the share of correct detections over their scores, with the number of detections above each bar."""

    def draw(axes: Axes) -> None:
        places = (np.arange(len(found.counts)) + 0.5) / len(found.counts)
        bars = axes.bar(places, np.nan_to_num(found.right), 0.9 / len(found.counts), color=SERIES[0])
        axes.bar_label(
            bars, [short(count) if count else "" for count in found.counts.tolist()], padding=2, fontsize=7.5
        )
        axes.plot((0, 1), (0, 1), color=SERIES[1], linestyle="--", linewidth=1.4, label="calibrated")
        axes.set(xlabel="score", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1.1))
        axes.legend(loc="upper left")

    return figure(draw)


def cost_figure(costs: Mapping[str, float]) -> Markup:
    """Draw a bar per kind of error: how much AP50 rises if its errors are repaired."""

    def draw(axes: Axes) -> None:
        names = list(costs)[::-1]
        values = [100 * costs[name] for name in names]
        bars = axes.barh(names, values, color=SERIES[0])
        axes.bar_label(bars, [f"{value:.1f}" for value in values], padding=3)
        axes.set(xlabel="points of AP50 to be gained")
        axes.set_xlim(0, max(1.0, 1.18 * max(values, default=0)))
        axes.grid(axis="y", visible=False)

    return figure(draw)


def group_figure(groups: Sequence[Group], label: str) -> Markup:
    """Draw a bar for the AP of each group, with its number of objects below."""

    def draw(axes: Axes) -> None:
        places = np.arange(len(groups))
        values = np.array([group.ap for group in groups])
        axes.bar(places, np.nan_to_num(values), color=SERIES[0])
        for place, ap in enumerate(values.tolist()):
            axes.text(place, np.nan_to_num(ap) + 0.02, "–" if np.isnan(ap) else f"{ap:.2f}", ha="center")
        names = [g.name.replace("under ", "<").replace("over ", ">").replace(" and more", "+") for g in groups]
        ticks = [f"{name}\nn={short(group.objects)}" for name, group in zip(names, groups)]
        axes.set_xticks(places, ticks, fontsize=7.5)
        axes.set(xlabel=label, ylabel="AP", ylim=(0, 1.1))
        axes.grid(axis="x", visible=False)

    return figure(draw)


def histograms(splits: Mapping[str, DataStatistics]) -> list[tuple[Markup, str, str]]:
    """Return figure, title and explanation of the histograms of one or two splits, side by side."""
    beside = " beside those of training" if "training" in splits else ""
    return [
        (histogram_figure({n: getattr(s, name) for n, s in splits.items()}, edges, label, ticks.split()), title,
         reading % beside)
        for name, title, edges, label, ticks, reading in HISTOGRAMS
    ]  # fmt: skip


def histogram_figure(
    values: Mapping[str, np.ndarray], edges: Sequence[float], label: str, ticks: Sequence[str]
) -> Markup:
    """Draw a histogram in percent of values by split; those beyond the edges count in the first or last bin."""

    def draw(axes: Axes) -> None:
        places = np.arange(len(ticks))
        width = 0.8 / len(values)
        for number, (name, of_split) in enumerate(values.items()):
            bins = np.clip(np.searchsorted(edges, of_split, side="right") - 1, 0, len(ticks) - 1)
            shares = 100 * np.bincount(bins, minlength=len(ticks)) / max(len(of_split), 1)
            axes.bar(
                places + (number - (len(values) - 1) / 2) * width, shares, width, color=SERIES[number],
                hatch="///" * number, edgecolor=INK, linewidth=0.3, label=name,
            )  # fmt: skip
        axes.set_xticks(places, ticks, fontsize=8)
        axes.set(xlabel=label, ylabel="percent")
        axes.grid(axis="x", visible=False)
        if len(values) > 1:
            axes.legend()

    return figure(draw)


def figure(draw: Callable[[Axes], None]) -> Markup:
    """Draw on new axes and return the SVG element, without a fixed size and without an XML head."""
    with matplotlib.rc_context(SETTINGS):
        made = Figure(figsize=(4.8, 3.2), layout="constrained")
        FigureCanvasSVG(made)
        axes = made.add_subplot()
        axes.grid(True)
        axes.set_axisbelow(True)
        draw(axes)
        file = io.StringIO()
        made.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    head, _, rest = text.partition(">")
    head = re.sub(r' (?:width|height|version|xmlns:xlink)="[^"]*"', "", head)
    text = UNUSED_IDS.sub("<g", f'{head} role="img">{rest}'.replace("xlink:href", "href"))
    text = IDS.sub(f"figure{next(NUMBERS)}-", text)  # make used ids unique, as the page has many figures
    text = FAMILY.sub(lambda found: f"-size{found[1]}" if found[1] else "", text)  # use the page's font
    for stand_in, colour in PAGE_COLOURS.items():
        text = text.replace(stand_in, colour)
    return Markup(text)


def short(number: int) -> str:
    """Abbreviate a number: 1234 -> "1.2k"."""
    return str(number) if number < 1000 else f"{number / 1000:.1f}k" if number < 10_000 else f"{number // 1000}k"
