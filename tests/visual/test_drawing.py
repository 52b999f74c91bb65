"""The pictures that people look at: drawn instances and the curves of a run."""

import time
from dataclasses import dataclass

import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import FontEntry, fontManager
from PIL import Image

from dataset_files.boxes import intersections
from train_utils.visual import curves, fonts
from train_utils.visual.curves import plot_loss_and_lr, plot_map, smooth
from train_utils.visual.drawing import (
    draw_instances,
    instance_colours,
    label_font_size,
    mask_contour,
    place_plates,
    readable_scale,
)

GREY = (90, 90, 90)


@dataclass
class Scene:
    """What draw_instances takes, N instances of random size and place."""

    image: Image.Image
    boxes: np.ndarray
    names: list[str]
    scores: np.ndarray
    masks: list[tuple[int, int, np.ndarray]]

    def draw(self, **changes) -> Image.Image:
        return draw_instances(**({**vars(self), **changes}))


def make_scene(count: int, width: int = 640, height: int = 480, seed: int = 0) -> Scene:
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    low = random.integers(0, (width - 8, height - 8), (count, 2))
    high = np.minimum(low + random.integers(4, max(8, min(width, height) // 2), (count, 2)), (width, height))
    masks = [(int(x), int(y), random.random((h, w)) > 0.3) for (x, y), (w, h) in zip(low, high - low, strict=True)]
    names = [f"class {i % 7}" for i in range(count)]
    return Scene(image, np.concatenate([low, high], 1).astype(np.float32), names, random.random(count), masks)


def changed_pixels(drawn: Image.Image, colour: tuple[int, int, int] = GREY) -> np.ndarray:
    """Bool [H, W]: where a picture that was one plain colour is no longer so."""
    return (np.asarray(drawn) != colour).any(2)


@pytest.mark.parametrize(
    ("size", "scale"),
    [
        ((640, 480), 1),
        ((425, 640), 1),
        ((4000, 3000), 1),
        ((400, 321), 1),
        ((320, 240), 2),
        ((128, 128), 4),
        ((128, 96), 5),
        ((1000, 20), 2),
        ((2500, 20), 1),
        ((1, 1), 480),
    ],
)
def test_only_small_pictures_are_enlarged(size, scale):
    assert readable_scale(*size) == scale
    if max(size) < 1000:
        drawn = draw_instances(Image.new("RGB", size), np.zeros((0, 4)), [])
        assert drawn.size == (size[0] * scale, size[1] * scale)


def test_boxes_of_an_enlarged_picture_stand_on_its_pixels():
    drawn = draw_instances(Image.new("RGB", (128, 128), GREY), np.array([[32.0, 64.0, 96.0, 120.0]]), ["cat"])
    changed = changed_pixels(drawn)
    assert (
        changed[4 * 64 : 4 * 120, 4 * 32].all()
        and changed[4 * 64 : 4 * 120, 4 * 96 - 1].all()
        and changed[4 * 120 - 1, 4 * 32 : 4 * 96].all()
    )
    assert not changed[4 * 120 :].any() and not changed[:, 4 * 96 :].any() and not changed[:, : 4 * 32].any()


def test_a_picture_without_instances_stays_as_it_is():
    image = make_scene(0).image
    for masks in (None, []):
        drawn = draw_instances(image, np.zeros((0, 4), np.float32), [], np.zeros(0), masks)
        assert drawn is not image and np.array_equal(np.asarray(drawn), np.asarray(image))


@pytest.mark.parametrize(("size", "scale"), [(640, 1), (128, 4)])
def test_a_one_pixel_mask_is_drawn_where_it_is(size, scale):
    image, far_box = Image.new("RGB", (size, size), GREY), np.array([[0.0, size - 1, 1, size]])
    without = draw_instances(image, far_box, ["dot"])
    drawn = draw_instances(image, far_box, ["dot"], masks=[(50, 60, np.ones((1, 1), bool))])
    ys, xs = np.nonzero((np.asarray(without) != np.asarray(drawn)).any(2))
    assert set(ys // scale) == {60} and set(xs // scale) == {50}


def test_a_one_pixel_box_covers_one_pixel():
    drawn = draw_instances(Image.new("RGB", (640, 640), GREY), np.array([[50.0, 60, 51, 61]]), ["dot"])
    changed = changed_pixels(drawn)
    assert changed[60, 50] and not changed[61:].any() and not changed[:, :50].any()


def test_a_mask_is_blended_and_outlined_within_its_crop_only():
    crop = np.ones((40, 60), bool)
    drawn = np.asarray(
        draw_instances(
            Image.new("RGB", (400, 400), GREY),
            np.array([[0.0, 399, 1, 400]]),
            ["cat"],
            None,
            [(300, 100, crop)],
        )
    )
    colour = np.array(instance_colours(["cat"])[0])
    inside = drawn[101:139, 301:359]
    assert np.abs(inside - (0.6 * np.array(GREY) + 0.4 * colour)).max() <= 1
    assert (drawn[100, 300:360] == drawn[100, 300]).all() and (drawn[100, 300] != inside[0, 0]).any()
    outside = drawn.copy()
    outside[100:140, 300:360] = GREY
    assert not changed_pixels(outside[:300]).any()


@pytest.mark.parametrize("size", [128, 400])
def test_a_mask_along_the_whole_border_is_drawn(size):
    image = Image.new("RGB", (size, size), GREY)
    drawn = draw_instances(
        image, np.array([[0.0, 0, size, size]]), ["background"], np.array([0.5]), [(0, 0, np.ones((size, size), bool))]
    )
    assert changed_pixels(drawn).all()


def test_empty_masks_are_skipped():
    scene = make_scene(3)
    empty = [(0, 0, np.zeros((0, 0), bool)), (640, 480, np.zeros((0, 5), bool)), (5, 5, np.zeros((7, 7), bool))]
    assert np.array_equal(np.asarray(scene.draw(masks=empty)), np.asarray(scene.draw(masks=None)))


def test_the_contour_is_the_mask_minus_its_erosion():
    crop = np.zeros((9, 9), bool)
    crop[1:8, 1:8] = True
    inner = np.zeros_like(crop)
    inner[3:6, 3:6] = True
    assert np.array_equal(mask_contour(crop, 2), crop & ~inner)
    assert np.array_equal(
        mask_contour(np.ones((3, 5), bool), 1), np.pad(np.zeros((1, 3), bool), 1, constant_values=True)
    )
    assert mask_contour(np.ones((1, 1), bool), 3).all()


def test_small_instances_are_drawn_over_big_ones():
    boxes = np.array([[200.0, 200, 240, 240], [10, 10, 400, 400]])
    masks = [(200, 200, np.ones((40, 40), bool)), (10, 10, np.ones((390, 390), bool))]
    image = Image.new("RGB", (420, 420), GREY)
    big, small = np.array(instance_colours(["big", "small"]))
    for order in ([0, 1], [1, 0]):
        drawn = np.asarray(
            draw_instances(image, boxes[order], [["small", "big"][i] for i in order], None, [masks[i] for i in order])
        )
        assert (drawn[230, 239] == small).all()
        assert np.abs(drawn[230, 230] - (0.6 * (0.6 * np.array(GREY) + 0.4 * big) + 0.4 * small)).max() <= 1


def test_a_class_keeps_its_colour_and_its_instances_differ():
    (alone,) = instance_colours(["zebra"])
    among = instance_colours(["cat", "zebra", "cat", "zebra"])
    assert among[1] == alone and len(set(among)) == 4
    assert len(set(instance_colours(["cat"] * 50))) == 50


def test_labels_do_not_cover_each_other_where_there_is_room():
    boxes = np.tile([300, 200, 340, 240], (8, 1))
    plates = place_plates(boxes, [(70, 14)] * 8, (640, 480))
    overlap = intersections(plates[:, None], plates)
    assert np.array_equal(overlap, np.diag(np.diag(overlap)))


def test_labels_stay_within_the_picture():
    scene = make_scene(60, seed=3)
    plates = place_plates(scene.boxes.astype(int), [(90, 15)] * 60, (640, 480))
    assert (plates >= 0).all() and (plates[:, 2] <= 640).all() and (plates[:, 3] <= 480).all()
    assert np.array_equal(plates[:, 2:] - plates[:, :2], np.tile([90, 15], (60, 1)))


def test_text_grows_with_the_picture_and_shrinks_in_a_crowd():
    assert label_font_size((640, 480), 1) < label_font_size((1920, 1080), 1) < label_font_size((3840, 2160), 1)
    assert 10 <= label_font_size((640, 480), 100) < label_font_size((640, 480), 1)


@pytest.mark.parametrize(
    "name", ["猫", "交通信号灯", "", " ", "two\nlines\t", "\x00\x07", "\ud800", "😀 é ß", "قطة", "x" * 500, "100% {}"]
)
def test_no_name_is_too_strange(name):
    for size in ((640, 480), (30, 400)):
        drawn = draw_instances(Image.new("RGB", size, GREY), np.array([[2.0, 40, 28, 80]]), [name], np.array([0.87]))
        assert changed_pixels(drawn).any()


def test_chinese_names_are_written_with_an_installed_chinese_font(tmp_path, monkeypatch):
    # A private character that no font holds stands beside the Chinese one, so that no font of this machine can tie with
    # the one written here.
    path, name = tmp_path / "test.ttf", "猫" + chr(0x10FFFD)
    write_font(path, name)
    monkeypatch.setattr(
        fontManager,
        "ttflist",
        [*fontManager.ttflist, FontEntry(fname=str(path), name="WenQuanYi Test", style="normal", weight=400)],
    )
    caches = (fonts.font_for, fonts.installed_cjk_fonts)
    for cached in caches:
        cached.cache_clear()
    try:
        assert fonts.font_for(name) == str(path)
        assert fonts.font_for("cat é").startswith(matplotlib.get_data_path())
    finally:
        for cached in caches:
            cached.cache_clear()


def write_font(path, characters: str) -> None:
    """A TrueType font in which each of the characters is a filled square."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, 800), (900, 800), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    builder = FontBuilder(unitsPerEm=1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(c): "square" for c in characters})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": square})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 100)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "WenQuanYi Test", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def test_drawing_leaves_its_inputs_as_they_were():
    for size in ((640, 480), (128, 96)):
        scene, untouched = make_scene(20, *size), make_scene(20, *size)
        scene.boxes.flags.writeable = False
        scene.draw()
        assert np.array_equal(np.asarray(scene.image), np.asarray(untouched.image))
        assert (
            np.array_equal(scene.boxes, untouched.boxes)
            and np.array_equal(scene.scores, untouched.scores)
            and scene.names == untouched.names
        )
        for (x0, y0, crop), (x0_before, y0_before, crop_before) in zip(scene.masks, untouched.masks, strict=True):
            assert (x0, y0) == (x0_before, y0_before) and np.array_equal(crop, crop_before)


def test_a_hundred_instances_are_drawn_within_a_second():
    scene = make_scene(100)
    scene.draw()
    start = time.process_time()
    scene.draw()
    assert time.process_time() - start < 1


def test_boxes_beyond_the_picture_or_not_finite_do_not_stop_the_drawing():
    boxes = np.array([[-50.0, -50, 9000, 9000], [700, 700, 800, 800], [10, 10, 5, 5], [np.nan, 0, np.inf, 5]])
    assert draw_instances(Image.new("RGB", (640, 480)), boxes, ["a"] * 4).size == (640, 480)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_picture_modes_become_rgb(mode):
    assert draw_instances(Image.new(mode, (640, 480)), np.array([[5.0, 5, 50, 50]]), ["cat"]).mode == "RGB"


@pytest.mark.parametrize("wrong", ["names", "scores", "masks"])
def test_a_wrong_number_of_values_is_named(wrong):
    scene = make_scene(3)
    with pytest.raises(ValueError, match=f"3 boxes need 3 {wrong}, got 2"):
        scene.draw(**{wrong: getattr(scene, wrong)[:2]})


def ink(path) -> int:
    """How many pixels of a written PNG have a colour, that is, belong to a curve or the legend and not to the black and
    grey axes."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int((np.ptp(pixels, axis=2) > 60).sum())


@pytest.fixture(scope="module")
def ink_without_points(tmp_path_factory) -> tuple[int, int]:
    """The ink of both pictures where there is nothing to show, which is their legend's."""
    folder = tmp_path_factory.mktemp("empty")
    plot_loss_and_lr([], [], folder / "loss.png")
    plot_map([], [], [], folder / "map.png", [], [])
    return ink(folder / "loss.png"), ink(folder / "map.png")


@pytest.mark.parametrize(
    "losses",
    [[2.5], [float("nan")], [3.0, float("nan"), 2.0, float("inf"), 1.0], list(np.geomspace(5, 0.5, 3000))],
    ids=["one", "only NaN", "with NaN", "many"],
)
def test_the_loss_curve_is_written_for_any_history(tmp_path, losses, ink_without_points):
    path = tmp_path / "loss.png"
    path.write_text("an older one")
    plot_loss_and_lr(losses, [0.02] * len(losses), path)
    assert ink(path) > ink_without_points[0]
    assert list(tmp_path.iterdir()) == [path]


def test_steps_and_epochs_have_their_own_numbers(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(curves, "write_png", lambda figure, path: figures.append(figure))
    steps, ends = [20, 40, 50, 70, 90, 100], {2: 50, 3: 100}
    plot_loss_and_lr([3, 2, 2, 1, 1, 1], [0.1] * 6, tmp_path / "loss.png", steps, ends)
    axes = figures[0].axes[0]
    assert axes.get_xlabel() == "step" and list(axes.lines[0].get_xdata()) == steps
    (top,) = axes.child_axes
    assert top.get_xlabel() == "end of epoch"
    assert list(top.get_xticks()) == [50, 100] and [t.get_text() for t in top.get_xticklabels()] == ["2", "3"]

    plot_loss_and_lr([1] * 400, [0.1] * 400, tmp_path / "loss.png", None, {e: e + 1 for e in range(400)})
    assert 10 <= len(figures[1].axes[0].child_axes[0].get_xticks()) <= 14


@pytest.mark.parametrize("count", [1, 26])
def test_the_map_curve_is_written_for_any_number_of_epochs(tmp_path, count, ink_without_points):
    path, ap = tmp_path / "map.png", np.linspace(0.1, 0.4, count)
    plot_map(range(count), ap, 0.9 * ap, path, box_ap50=1.5 * ap, mask_ap50=[-1.0] * count)
    assert ink(path) > ink_without_points[1]
    assert list(tmp_path.iterdir()) == [path]


def test_smoothing_is_a_mean_over_the_finite_neighbours():
    nan = np.nan
    assert np.allclose(smooth(np.array([1.0, 2, 6, nan, 4]), window=1), [1.5, 3, 4, 5, 4])
    assert np.allclose(
        smooth(np.array([1.0, nan, nan, nan, 1e30, 2, 2, 2]), window=1),
        [1, 1, nan, 1e30, 5e29, 1e30 / 3, 2, 2],
        equal_nan=True,
    )
    assert smooth(np.array([]), window=3).shape == (0,)


def test_curves_of_unequal_length_are_refused(tmp_path):
    with pytest.raises(ValueError):
        plot_loss_and_lr([1.0, 2.0], [0.1], tmp_path / "loss.png")
    with pytest.raises(ValueError):
        plot_map([0, 1], [0.1, 0.2], [0.1], tmp_path / "map.png", [0.1, 0.2], [0.1, 0.2])
    assert not list(tmp_path.iterdir())
