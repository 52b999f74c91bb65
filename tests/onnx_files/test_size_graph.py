"""The resized size in a graph of integers is the network's, to the pixel, in every runtime."""

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="needs the packages onnx and onnxruntime")
pytest.importorskip("onnxruntime", reason="needs the packages onnx and onnxruntime")

from network_files.image_transform import ImageTransform  # noqa: E402
from onnx_files.graph import Graph  # noqa: E402
from onnx_files.runtimes import RUNTIMES, Session, is_installed, open_session  # noqa: E402
from onnx_files.size_graph import size_after_resize  # noqa: E402

LIMITS = [(800, 1333), (320, 544)]  # the published networks' and the demo's
LARGEST = 4000


def network_sizes(sides: np.ndarray, min_size: int, max_size: int, rounded: bool) -> np.ndarray:
    """What `ImageTransform` computes in float64, for many images: int64 [N, 2] -> [N, 2]."""
    sides = sides.astype(np.float64)
    scale = np.minimum(min_size / sides.min(1), max_size / sides.max(1))
    return np.maximum(np.floor(sides * scale[:, None] + 0.5 * rounded), 1).astype(np.int64)


def runtimes_of(min_size: int, max_size: int, rounded: bool) -> list[Session]:
    g = Graph(17)
    resized = size_after_resize(g, "image", min_size, max_size, rounded)
    model = g.model({"image": ("int64", ["N", 2])}, {"sizes": (resized, "int64", ["N", 2])}, {}, "sizes")
    return [open_session(model.SerializeToString(), name, 1) for name in RUNTIMES if is_installed(name)]


def critical_sides(min_size: int, max_size: int) -> np.ndarray:
    """Sizes up to `LARGEST` whose exact result is a whole number or a half, and as many drawn ones: int64 [N, 2]."""
    small, large = np.arange(1, LARGEST + 1)[:, None], np.arange(1, LARGEST + 1)[None]
    by_short = min_size * large <= max_size * small
    found = [np.stack([np.arange(1, LARGEST + 1)] * 2, 1)]
    for applies, limit, side, by in ((by_short, min_size, large, small), (~by_short, max_size, small, large)):
        found.append(np.argwhere(applies & (small <= large) & (2 * limit * side % by == 0)) + 1)
    sides = np.concatenate(found)
    drawn = np.random.default_rng(0).integers(1, LARGEST + 1, sides.shape)
    return np.concatenate((sides, sides[:, ::-1], drawn))


@pytest.mark.parametrize("rounded", [False, True], ids=["rounded down", "rounded"])
@pytest.mark.parametrize("limits", LIMITS)
def test_sizes_where_float64_decides_are_those_of_the_network(limits, rounded):
    sides = critical_sides(*limits)
    expected = network_sizes(sides, *limits, rounded)
    exact = (sides * np.minimum(limits[0] / sides.min(1), limits[1] / sides.max(1))[:, None]).round(6)
    assert rounded or (expected < np.floor(exact)).any()  # float64 falls below whole numbers
    for session in runtimes_of(*limits, rounded):
        np.testing.assert_array_equal(session.run(sides)["sizes"], expected, err_msg=session.name)


@pytest.mark.long
@pytest.mark.parametrize("rounded", [False, True], ids=["rounded down", "rounded"])
def test_all_sizes_up_to_4000_are_those_of_the_network(rounded):
    sessions = runtimes_of(*LIMITS[0], rounded)
    for height in range(1, LARGEST + 1, 50):
        sides = np.stack(np.meshgrid(np.arange(height, height + 50), np.arange(1, LARGEST + 1)), -1).reshape(-1, 2)
        expected = network_sizes(sides, *LIMITS[0], rounded)
        for session in sessions:
            np.testing.assert_array_equal(session.run(sides)["sizes"], expected, err_msg=session.name)


@pytest.mark.slow
@pytest.mark.parametrize("rounded", [False, True], ids=["rounded down", "rounded"])
def test_the_network_computes_sizes_as_this_test_does(rounded):
    transform = ImageTransform(800, 1333, [0.5] * 3, [0.5] * 3, antialias=rounded).eval()
    sides = np.random.default_rng(1).permutation(critical_sides(800, 1333))[:60]
    for (height, width), expected in zip(sides, network_sizes(sides, 800, 1333, rounded)):
        assert list(transform.resize(torch.empty(3, height, width, device="meta")).shape[1:]) == list(expected)
