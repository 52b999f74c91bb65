"""The order of the rooms in CONTRIBUTING.md: who imports whom, and how large rooms, files and functions are.

Reads the sources with `ast`, imports nothing. An import in a function counts, one under `TYPE_CHECKING` does not.
"""

import ast
import re
import sys
from collections import Counter
from functools import cache

from tests.helpers.project import ROOT

# From the bottom up; a room imports from those before it, a file of the last two from all but each other's.
ROOMS = (
    "backbone", "network_files", "dataset_files", "dataset_files/layouts", "datasets", "train_utils", "prediction",
    "report", "onnx_files", "tools", "scripts",
)  # fmt: skip
SIDE_BY_SIDE = {("report", "prediction"), ("onnx_files", "report"), ("onnx_files", "prediction"), ("scripts", "tools")}
DATASETS = {"my_dataset_coco", "my_dataset_voc", "transforms"}
LONGEST_FUNCTION, LONGEST_FILE = 80, 400
# Still above a limit; each entry goes when its owner has shortened it, and none is added.
LONG_FUNCTIONS: set[str] = set()
LONG_FILES: set[str] = set()


@cache
def product() -> dict[str, ast.Module]:
    """Path from the root -> syntax tree, of every file of the product."""
    folders = ("", *sorted({room.partition("/")[0] for room in ROOMS} - {"datasets", "scripts"}))
    files = [f for folder in folders for f in (ROOT / folder).glob("*.py" if folder == "" else "**/*.py")]
    return {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in sorted(files)}


def room_of(path: str) -> str:
    """The room of a file or of a module whose dots are slashes."""
    first, *rest = path.removesuffix(".py").split("/")
    if not rest and (ROOT / f"{first}.py").is_file():
        return "datasets" if first in DATASETS else "scripts"
    return "dataset_files/layouts" if first == "dataset_files" and rest[:1] == ["layouts"] else first


@cache
def imports() -> dict[str, set[str]]:
    """File -> files of the product that it imports."""
    return {path: imported_files(tree) - {path} for path, tree in product().items()}


def imported_files(tree: ast.Module) -> set[str]:
    names = set()
    for node in running_nodes(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    stems = [name.replace(".", "/") for name in names]
    return {path for stem in stems for path in (f"{stem}.py", f"{stem}/__init__.py") if path in product()}


def running_nodes(tree: ast.AST) -> list[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`."""
    found = [tree]
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            found += running_nodes(node)
    return found


def test_no_room_imports_from_a_room_above_it():
    upward = []
    for path, targets in imports().items():
        for target in sorted(targets):
            own, other = room_of(path), room_of(target)
            above = ROOMS.index(other) > ROOMS.index(own)
            if above or (own, other) in SIDE_BY_SIDE:
                upward.append(f"{path} ({own}) imports {target} ({other})")
    assert not upward, "\n".join(upward)


def test_no_files_import_each_other_in_a_circle():
    remaining = {path: set(targets) for path, targets in imports().items()}
    while free := {path for path, targets in remaining.items() if not targets & remaining.keys()}:
        remaining = {path: targets for path, targets in remaining.items() if path not in free}
    assert not remaining, f"in a circle, or above one: {sorted(remaining)}"


def test_every_import_of_the_product_is_seen():
    """Else the tests above would hold whatever happens."""
    assert "network_files/mask_rcnn.py" in imports()["network_files/__init__.py"]  # inside a function
    assert "backbone/__init__.py" in imports()["train_utils/models.py"]
    assert {room_of(path) for path in product()} == set(ROOMS)


def test_every_package_that_is_imported_is_in_the_requirements():
    """By the names under which packages are installed; requirements.txt mentions those that not every use needs."""
    installed = {"PIL": "pillow", "yaml": "pyyaml", "cv2": "opencv-python", "markupsafe": "jinja2"}
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8").lower()
    known = {*sys.stdlib_module_names, *(path.partition("/")[0].removesuffix(".py") for path in product())}
    names: set[str] = set()
    for tree in product().values():
        for node in running_nodes(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names |= {module.partition(".")[0] for module in modules} - known
    assert {"torch", "contourpy", "PIL"} <= names
    missing = {name for name in names if not re.search(rf"^(#.*)?\b{installed.get(name, name)}\b", text, re.M)}
    assert not missing


def test_no_room_is_larger_than_a_third_of_the_product():
    lines = Counter()
    for path in product():
        lines[room_of(path).partition("/")[0]] += count_lines(path)
    large = {room: count for room, count in lines.items() if count > lines.total() / 3}
    assert not large, f"of {lines.total()} lines: {large}"


def test_no_file_and_no_function_is_longer_than_the_limit():
    files = {path for path in product() if count_lines(path) > LONGEST_FILE}
    functions = {
        f"{path}: {node.name}"
        for path, tree in product().items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION
    }
    assert files <= LONG_FILES, f"above {LONGEST_FILE} lines"
    assert functions <= LONG_FUNCTIONS, f"above {LONGEST_FUNCTION} lines"


def count_lines(path: str) -> int:
    return len((ROOT / path).read_text(encoding="utf-8").splitlines())
