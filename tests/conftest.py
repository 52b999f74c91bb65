"""Fixtures of all tests: the number of threads, the seed, tests that need a GPU, and photos."""
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.photos import load_photos
from tests.helpers.project import real_data

# More threads than that gain nothing on test-sized pictures; parallel test processes share the cores.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(4, torch.get_num_threads()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


@pytest.fixture(autouse=True)
def _same_random_numbers_in_any_order() -> None:
    """A test draws the same numbers alone and among the others."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real test data; whatever uses it is skipped where it is absent."""
    folder = real_data()
    if folder is None:
        pytest.skip("no real photos: see tests/README.md on MASKRCNN_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def photos(data_folder: Path) -> tuple[list[Tensor], list[dict]]:
    """Three photos of different shapes with 1, 5 and 6 objects, as `load_photos` gives them."""
    return load_photos(data_folder / "coco_tiny", "val", [125952, 404484, 417285])
