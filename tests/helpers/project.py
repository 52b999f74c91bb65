"""The folder of this project, and the folder of real photos."""

import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def importing_tests(variables: Mapping[str, str]) -> dict[str, str]:
    """Environment variables with which another process finds the package `tests` from any folder."""
    return {**variables, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), variables.get("PYTHONPATH")]))}


def real_data() -> Path | None:
    """The folder that MASKRCNN_TEST_DATA names, else ../shared/data; None where there is no such folder."""
    named = os.environ.get("MASKRCNN_TEST_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    return folder if folder.is_dir() else None
