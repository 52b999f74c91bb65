"""Every `file:function` that docs/METHOD.md names exists in the code, and the page maps the method row by row."""

import ast
import re
from pathlib import Path

import pytest

from tests.helpers.project import ROOT

PAGE = ROOT / "docs" / "METHOD.md"
REFERENCE = re.compile(r"`([\w/]+\.py):([\w.]+)`")


def definitions(path: Path) -> set[str]:
    """Names of a file's functions, classes and methods, the latter as Class.method."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{child.name}" for child in node.body if isinstance(child, ast.FunctionDef)}
    return names


def references() -> list[tuple[str, str]]:
    return sorted(set(REFERENCE.findall(PAGE.read_text(encoding="utf-8"))))


@pytest.mark.parametrize(("file", "name"), references())
def test_what_the_page_names_exists(file: str, name: str):
    assert (ROOT / file).is_file(), f"{file} is missing"
    assert name in definitions(ROOT / file), f"{file} defines no {name}"


def test_every_code_cell_of_the_page_names_a_function_and_there_are_enough_rows():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if line.startswith("| ") and not line.startswith(("| ---", "| Paper"))]
    rows = [line.split("|")[1:-1] for line in table]
    assert len(rows) >= 20
    for row in rows:
        assert len(row) == 3, f"not three cells: {row}"
        assert REFERENCE.search(row[1]), f"no `file:function` in {row[1]}"


def test_links_and_figures_of_the_page_exist():
    targets = re.findall(r"\]\(([^)#]+)\)", PAGE.read_text(encoding="utf-8"))
    local = [target for target in targets if not target.startswith("https://")]
    assert local and not [target for target in local if not (PAGE.parent / target).is_file()]


def test_a_missing_function_would_be_found():
    names = definitions(ROOT / "network_files" / "rpn.py")
    assert "RegionProposalNetwork.losses" in names and "per_anchor" in names
    assert "RegionProposalNetwork.no_such_method" not in names and "losses" not in names
