"""Fixtures of all tests: the number of threads, the seed, tests that need a GPU, and photos.

Heavy packages are imported where they are used: the process that only distributes tests to others has no need of them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.project import real_data

if TYPE_CHECKING:
    from torch import Tensor

# Files that take longest. Parallel processes begin with them, so that none is left at the end.
LONGEST = (
    "test_gpu_check.py", "test_determinism.py", "test_many_machines.py", "test_resume.py", "test_commands.py",
    "test_exactness.py", "test_network_equals_torchvision.py", "test_network_graph.py", "test_detectron2.py",
    "test_bad_inputs.py", "test_any_layout.py", "test_weights.py", "test_onnx_tools.py", "test_onnx_precision.py",
    "test_compiling.py", "test_masks_without_torch.py", "test_published_file.py", "test_gpu_rows.py",
    "test_fuzzing.py",
)  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    """Give all files that start runs to one process, as the server that these are forked from takes long to start."""
    if config.option.dist != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class OneServer(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "runs" if starts_runs(config.rootpath / file) else file

    return OneServer(config, log)


@functools.cache
def starts_runs(file: Path) -> bool:
    return "tests.helpers.forked" in file.read_text(encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):  # newer versions of pytest-xdist
        config.option.loadscopereorder = False  # keep the order of the items; its own is by the number of tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    # More threads than that gain nothing on test-sized images; parallel test processes share the cores.
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(4, torch.get_num_threads()))
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))
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
