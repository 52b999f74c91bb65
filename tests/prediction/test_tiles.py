"""Large images in tiles: every pixel is seen, every object found once and whole, and no more in memory than a tile."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataset_files.boxes import ious
from network_files.masks.rle import MOST_PIXELS
from predict import Predictor
from prediction.options import PredictorSettings
from prediction.prediction import Prediction
from prediction.tiles import tiles_of
from tests.helpers.commands import started
from tests.helpers.project import ROOT
from tests.helpers.stub_detector import BLOT, Box, StubDetector, draw_shapes, drawn_shapes, separate_boxes, stub_trained


def predictor(tile: int | None, detector: StubDetector | None = None, **options) -> Predictor:
    options = PredictorSettings(tile=tile, box_thresh=0, **options)
    return Predictor.of_trained(stub_trained(detector or StubDetector()), options)


def assert_found_once(found: Prediction, masks: list[np.ndarray], iou: float = 0.9) -> None:
    """Each mask is found by exactly one object, whose box is the mask's and whose class is right."""
    assert len(found) == len(masks)
    assert (np.diff(found.scores) <= 0).all()
    table = np.array([[(m & other).sum() / (m | other).sum() for other in masks] for m in found.masks])
    matched = table.argmax(axis=1)
    assert sorted(matched.tolist()) == list(range(len(masks))), "an object is found twice, and another not at all"
    for row, k, label, box in zip(table, matched, found.labels, found.boxes):
        assert row[k] >= iou and label == 1 + k % 2
        rows, columns = np.flatnonzero(masks[k].any(1)), np.flatnonzero(masks[k].any(0))
        assert box == pytest.approx([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], abs=2)


def ious_with(found: Prediction, boxes: list[Box]) -> np.ndarray:
    return ious(found.boxes[:, None].astype(float), np.array(boxes, dtype=float))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(20, 150), st.floats(0, 0.8))
def test_tiles_cover_the_image_are_equal_and_overlap_as_asked(width: int, height: int, side: int, overlap: float):
    tiles = tiles_of((width, height), side, overlap)
    seen = np.zeros((height, width), dtype=bool)
    for x1, y1, x2, y2 in tiles:
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        assert (x2 - x1, y2 - y1) == (min(side, width), min(side, height))
        seen[y1:y2, x1:x2] = True
    assert seen.all() and len(set(tiles)) == len(tiles)
    for axis in (0, 1):
        starts = sorted({tile[axis] for tile in tiles})
        assert all(0 < after - before <= max(side * (1 - overlap), 1) for before, after in itertools.pairwise(starts))


def test_an_image_that_fits_a_tile_is_predicted_as_without_tiles():
    image, _ = drawn_shapes((90, 70), [(5, 5, 40, 30), (50, 20, 85, 60)])
    detector = StubDetector()
    one, other = predictor(100, detector)(image), predictor(None)(image)
    assert detector.seen == [(70, 90)]
    assert one.codes == other.codes and np.array_equal(one.boxes, other.boxes)


def test_objects_at_seams_and_corners_are_found_once_and_whole():
    boxes = [
        (10, 10, 60, 60),  # in one tile
        (85, 20, 110, 50),  # in the strip that two tiles see
        (60, 70, 130, 140),  # over a corner of four tiles, whole in none
        (150, 30, 290, 60),  # over three tiles
        (10, 110, 30, 280),  # and down
        (200, 200, 299, 299),
    ]
    image, masks = drawn_shapes((300, 300), boxes)
    assert len(tiles_of(image.size, 100, 0.2)) == 16
    assert_found_once(predictor(100, batch_size=3)(image), masks)


def test_neighbours_of_one_class_at_a_seam_stay_two():
    """Bars that touch, side by side and end to end, on both sides of the seams."""
    boxes = [(0, 0, 1, 1), (60, 10, 120, 30), (0, 2, 1, 3), (60, 30, 120, 50), (0, 4, 1, 5), (120, 10, 180, 30)]
    image, masks = drawn_shapes((200, 100), boxes)
    found = predictor(100)(image)
    bars = [k for k, label in enumerate(found.labels) if label == 2]
    assert len(bars) == 3
    for k, mask in zip((1, 3, 5), (masks[1], masks[3], masks[5])):
        assert max((found.masks[i] & mask).sum() / (found.masks[i] | mask).sum() for i in bars) > 0.9, boxes[k]


def test_a_fragment_of_another_class_belongs_to_the_object_that_another_tile_shows_whole():
    image, masks = drawn_shapes((180, 100), [(40, 30, 90, 80)])  # the second tile begins at 80
    detector = StubDetector(confused_below=20)
    found = predictor(100, detector)(image)
    assert len(detector.seen) == 2
    assert BLOT in detector.detect_one(np.asarray(image)[:, 80:])["labels"].tolist()
    assert_found_once(found, masks)


def test_with_agnostic_nms_a_fragment_of_another_class_belongs_to_its_object_even_if_no_tile_shows_that_whole():
    image, masks = drawn_shapes((260, 100), [(30, 30, 175, 80)])  # the last tile, from 160 on, sees 15 pixels
    trained = stub_trained(StubDetector(confused_below=20))
    for trained.config.agnostic_nms, number in ((False, 2), (True, 1)):
        found = Predictor.of_trained(trained, PredictorSettings(tile=100, box_thresh=0))(image)
        assert len(found) == number
    assert_found_once(found, masks)


def test_a_sliver_at_a_border_is_left_to_the_tile_that_sees_more():
    image, masks = drawn_shapes((180, 100), [(98, 30, 150, 80), (0, 0, 1, 1), (82, 85, 98, 99)])
    detector = StubDetector(confused_below=8)
    assert detector.detect_one(np.asarray(image)[:, :100])["labels"].tolist().count(BLOT) == 2  # the sliver, and a dot
    found = predictor(100, detector)(image)
    assert sorted(found.labels.tolist()) == [1, 1, BLOT]
    assert max((mask & masks[0]).sum() / (mask | masks[0]).sum() for mask in found.masks) > 0.9


@pytest.mark.slow
def test_a_thousand_shapes_in_an_image_of_5000_pixels_a_side_are_found_once():
    boxes = separate_boxes(5000, 5000, (15, 200), seed=0)
    detector = StubDetector()
    found = predictor(512, detector, batch_size=4)(draw_shapes((5000, 5000), boxes))
    assert set(detector.seen) == {(512, 512)} and len(detector.seen) == 144 and max(detector.together) == 4
    assert len(found) == len(boxes) > 1000
    assert found.labels.tolist() == [1 + k % 2 for k in ious_with(found, boxes).argmax(axis=1)]
    overlaps = ious_with(found, boxes)
    assert sorted(overlaps.argmax(axis=1).tolist()) == list(range(len(boxes))) and overlaps.max(axis=1).min() > 0.99


def test_small_objects_inside_a_large_one_stay():
    image, masks = drawn_shapes((200, 100), [(20, 10, 180, 90), (85, 40, 110, 60), (88, 63, 112, 87)])
    found = predictor(100)(image)
    assert sorted(int(mask.sum()) for mask in masks) == pytest.approx(
        sorted(int(mask.sum()) for mask in found.masks), rel=0.15
    )


@pytest.mark.parametrize("seed", range(6))
def test_random_shapes_are_found_once_and_whole(seed: int):
    """Up to twice a tile's side, without overlap but for what rounding to 28x28 makes."""
    boxes = separate_boxes(300, 400, (12, 130), seed)
    assert len(boxes) > 12
    image, masks = drawn_shapes((400, 400), boxes)
    assert_found_once(predictor(100, overlap=0.25, batch_size=4)(image), masks, iou=0.8)


def test_the_network_sees_no_more_than_a_batch_of_tiles():
    image, _ = drawn_shapes((500, 300), [(5, 5, 40, 30)])
    detector = StubDetector()
    predictor(100, detector, batch_size=4)(image)
    assert set(detector.seen) == {(100, 100)} and max(detector.together) == 4 and len(detector.seen) == 24


def test_an_image_has_as_many_pixels_as_masks_can_be_encoded_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert Image.MAX_IMAGE_PIXELS * 2 == MOST_PIXELS  # Pillow refuses images of twice its limit
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)
    Image.new("RGB", (400, 201)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match="large.png: cannot be read .* exceeds limit of 80000 pixels"):
        predictor(150)(tmp_path / "large.png")


def test_an_image_above_pillows_limit_gives_no_warning(tmp_path: Path):
    Image.new("1", (16400, 8200)).save(tmp_path / "large.png")
    program = f"from dataset_files.stored_images import open_image; open_image({str(tmp_path / 'large.png')!r})"
    outcome = started([sys.executable, "-c", program], ROOT)
    assert (outcome.code, outcome.said) == (0, "")
