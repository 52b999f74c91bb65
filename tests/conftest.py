"""Fixtures of all tests: the number of threads, the seed, tests that need a GPU, and photos.

Heavy packages are imported where they are used: the process that only distributes tests to others has no need of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.project import real_data

if TYPE_CHECKING:
    from torch import Tensor

# Files that take longest, in seconds on two cores. Parallel processes begin with them, so that none is left at the end.
LONGEST = {
    "test_gpu_check.py": 250, "test_determinism.py": 250, "test_many_machines.py": 110,
    "test_network_equals_torchvision.py": 80, "test_exactness.py": 70, "test_weights.py": 70, "test_commands.py": 60,
    "test_detectron2.py": 60, "test_resume.py": 60,
}  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):  # newer versions of pytest-xdist
        config.option.loadscopereorder = False  # keep the order of the items; its own is by the number of tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    # More threads than that gain nothing on test-sized images; parallel test processes share the cores.
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(4, torch.get_num_threads()))
    items.sort(key=lambda item: -LONGEST.get(item.path.name, 0))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Stored conversions and indices stay out of the user's cache; matplotlib's list of fonts is used from there."""
    import matplotlib

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _same_random_numbers_in_any_order() -> None:
    """A test draws the same numbers alone and among the others."""
    import torch

    torch.manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads as `run` of helpers/commands.py has, for results that are equal to the bit."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds coco_tiny and voc_tiny: real photos, or drawn images in the same layouts."""
    from tests.helpers.drawn_data import draw_data

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
    from tests.helpers.photos import THREE_PHOTOS, load_photos

    return load_photos(data_folder / "coco_tiny", "val", THREE_PHOTOS)
