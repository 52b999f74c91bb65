"""Pieces of HTML. Every text that is put in is escaped here, so that no class or file name can become markup."""

import html
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from report.gallery import Shot

KIND_NAMES = {"segm": "masks", "bbox": "boxes"}


class Column(NamedTuple):
    """A column of a table: "text", "count" or "share", which is a number from 0 to 1 with a bar behind it."""

    title: str
    form: str
    hint: str = ""


def text(value: object) -> str:
    """Escape a text for use between tags and in quoted attributes."""
    return html.escape(str(value), quote=True)


def number(value: float, digits: int = 3) -> str:
    return "–" if not math.isfinite(value) else f"{value:.{digits}f}"


def embedded_json(content: Any) -> str:
    """JSON for a script element: nothing in it can end that element or begin a comment."""
    plain = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        plain = plain.replace(character, f"\\u{ord(character):04x}")
    return plain


def section(name: str, title: str, *parts: str) -> str:
    return f'<section id="{name}"><h2>{text(title)}</h2>\n' + "\n".join(parts) + "\n</section>\n"


def paragraph(content: str, css: str = "") -> str:
    return f'<p class="{css}">{text(content)}</p>' if css else f"<p>{text(content)}</p>"


def of_kind(kind: str, *parts: str) -> str:
    """What is shown only while boxes or masks are chosen at the top of the page."""
    return f'<div class="of-kind" data-kind="{kind}">' + "\n".join(parts) + "</div>"


def plot(svg: str, title: str, reading: str) -> str:
    """A figure with its title and a sentence that says how to read it."""
    return f'<figure class="plot"><h3>{text(title)}</h3>{svg}<figcaption>{text(reading)}</figcaption></figure>'


def plots(*figures: str) -> str:
    return '<div class="plots">' + "".join(figures) + "</div>"


def table(columns: Sequence[Column], rows: Sequence[Sequence[Any]], name: str, filtered: str = "") -> str:
    """A table that can be sorted by each column.

    Args:
        name: for the page's script; unique.
        filtered: what the filter above the table looks for; no filter if empty.
    """
    head = "".join(
        f'<th scope="col" class="{column.form}"><button type="button" title="{text(column.hint)}">{text(column.title)}'
        "</button></th>"
        for column in columns
    )
    body = "\n".join("<tr>" + "".join(map(cell, columns, row)) + "</tr>" for row in rows)
    search = (
        f'<p class="filter"><label>Filter by {text(filtered)} <input type="search" data-table="{name}"></label> '
        f'<span role="status" data-count="{name}"></span></p>'
        if filtered
        else ""
    )
    return (
        f'{search}<div class="scroll" tabindex="0" role="region" aria-label="{text(name)}"><table class="sortable" '
        f'id="{name}"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
    )


def cell(column: Column, value: Any) -> str:
    if column.form == "text":
        return f"<td>{text(value)}</td>"
    if column.form == "count":
        return f'<td class="count" data-value="{value}">{value:,}</td>'
    if not math.isfinite(value):
        return '<td class="share" data-value="-1">–</td>'
    return f'<td class="share" data-value="{value:.6f}"><i style="width:{100 * value:.1f}%"></i><b>{value:.3f}</b></td>'


def shot(which: Shot, view: str, caption: str) -> str:
    """A place for an image that the page's script fills: "zoom" on an object, or "pair", truth beside detections."""
    places = ",".join(map(str, which))
    return f'<figure class="shot {view}" data-shot="{places}"><figcaption>{text(caption)}</figcaption></figure>'


def shots(figures: Sequence[str]) -> str:
    return '<div class="shots">' + "".join(figures) + "</div>"
