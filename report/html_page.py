"""Put the page together: one HTML file with its style, script, data and images inside, that loads nothing."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from report.html_parts import KIND_NAMES, embedded_json, text

PARTS = Path(__file__).parent / "page"
CHAPTERS = {
    "summary": "Summary",
    "classes": "Classes",
    "curves": "Curves",
    "confusion": "Confusion",
    "costs": "Costs",
    "groups": "Sizes",
    "images": "Images",
    "suspects": "Suspects",
    "data": "Data",
}


def page(title: str, kinds: list[str], sections: str, data: dict[str, Any]) -> str:
    """The whole page.

    Args:
        title: as plain text.
        kinds: what was compared, the one that is shown first in front.
        sections: HTML.
        data: for the page's script.
    """
    style, script = ((PARTS / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    links = "".join(f'<a href="#{name}">{words}</a>' for name, words in CHAPTERS.items())
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n<style>\n{style}</style></head>\n"
        f'<body>{choices(kinds)}<header><h1>{text(title)}</h1><nav aria-label="Sections">{links}</nav></header>\n'
        "<noscript><p>Images, sorting and filtering need this page's own script.</p></noscript>\n"
        f"<main>\n{sections}</main>\n"
        f'<script type="application/json" id="page-data">{embedded_json(data)}</script>\n'
        f"<script>{script}</script>\n</body></html>\n"
    )


def choices(kinds: list[str]) -> str:
    """Radio buttons for boxes and masks, by which the style shows one of both."""
    if len(kinds) < 2:
        return ""
    buttons = "".join(
        f'<label><input type="radio" name="kind" id="show-{kind}"{" checked" if kind == kinds[0] else ""}> '
        f"{KIND_NAMES[kind]}</label>"
        for kind in kinds
    )
    return f'<fieldset class="kinds"><legend>compare</legend>{buttons}</fieldset>'
