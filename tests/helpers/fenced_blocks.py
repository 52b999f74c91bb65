"""Code blocks of a Markdown page."""

import re
from pathlib import Path

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def python_blocks(page: Path) -> list[str]:
    """The fenced Python blocks of a page, in order."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))
