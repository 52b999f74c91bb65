"""Fixtures of all tests: the number of threads, the seed, tests that need a GPU, and photos."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.drawn_data import draw_data
from tests.helpers.photos import THREE_PHOTOS, load_photos
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
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds coco_tiny and voc_tiny: real photos, or drawn images in the same layouts."""
    return real_data() or draw_data(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="session")
def real_data_folder() -> Path:
    """The folder of real photos, and of what other programs computed on them, which cannot be drawn."""
    folder = real_data()
    if folder is None:
        pytest.skip("only with the published numbers and arrays: see tests/README.md on MASKRCNN_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def photos(data_folder: Path) -> tuple[list[Tensor], list[dict]]:
    """Three photos of different shapes with a few objects each, as `load_photos` gives them."""
    return load_photos(data_folder / "coco_tiny", "val", THREE_PHOTOS)
