"""Write docs/tutorial.ipynb, the notebook with the text and the commands of docs/TUTORIAL.md.

python -m tests.programs.tutorial
"""

import json
import re
from typing import Any

from tests.helpers.project import ROOT

PAGE, NOTEBOOK = ROOT / "docs" / "TUTORIAL.md", ROOT / "docs" / "tutorial.ipynb"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SETUP = (
    "%cd ..\n"
    "import os, sys\n"
    "sys.path.insert(0, os.getcwd())\n"
    'os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]\n'
)


def blocks() -> list[tuple[str, str]]:
    """The page's code blocks in order: language, code."""
    return [(language, code) for language, code in BLOCK.findall(PAGE.read_text(encoding="utf-8"))]


def notebook() -> dict[str, Any]:
    """The page as a notebook: commands get an exclamation mark, and the environment's activation becomes its path."""
    parts = BLOCK.split(PAGE.read_text(encoding="utf-8"))
    cells = []
    for i in range(0, len(parts), 3):
        text, (language, code) = parts[i], parts[i + 1 : i + 3] or ("", "")
        cells.append({"cell_type": "markdown", "metadata": {}, "source": text.strip()})
        if "activate" in code:
            code = SETUP
        elif language == "bash":
            code = "".join(f"!{line}\n" for line in code.splitlines())
        if code:
            cells.append(
                {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": [], "source": code.strip()}
            )
    numbered = [{"id": f"cell-{i}", **cell} for i, cell in enumerate(cells)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": numbered, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


if __name__ == "__main__":
    NOTEBOOK.write_text(json.dumps(notebook(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
