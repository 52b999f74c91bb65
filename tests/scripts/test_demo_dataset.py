"""The demo dataset: the same images from the same seed, consistent annotations, and no partial dataset on disk."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_codec
from pycocotools.coco import COCO

from tests.helpers.commands import Outcome, run, succeeded
from train_utils import demo_dataset
from train_utils.demo_dataset import CLASS_NAMES, draw_image, make_demo_dataset

NUM_TRAIN, NUM_VAL = 24, 6


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "data"
    make_demo_dataset(root, NUM_TRAIN, NUM_VAL)
    return root


@pytest.fixture(scope="module")
def coco(root: Path) -> COCO:
    return COCO(root / "annotations" / "instances_train2017.json")


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def annotations_of(root: Path, split: str, image_id: int) -> list[dict]:
    content = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
    return [annotation for annotation in content["annotations"] if annotation["image_id"] == image_id]


def decoded_masks(coco: COCO, image_id: int) -> list[tuple[dict, np.ndarray]]:
    return [(annotation, coco.annToMask(annotation).astype(bool)) for annotation in coco.imgToAnns[image_id]]


def test_same_seed_gives_the_same_bytes(root, tmp_path):
    make_demo_dataset(tmp_path / "again", NUM_TRAIN, NUM_VAL)
    assert contents(tmp_path / "again") == contents(root)


def test_another_seed_gives_other_pictures(root, tmp_path):
    make_demo_dataset(tmp_path / "other", 2, 1, seed=1)
    first, other = contents(root), contents(tmp_path / "other")
    for name in other:
        assert other[name] != first[name], name


def test_a_picture_does_not_depend_on_the_counts(root, tmp_path):
    make_demo_dataset(tmp_path / "few", 3, 2)
    few, many = contents(tmp_path / "few"), contents(root)
    pictures = [name for name in few if name.endswith(".jpg")]
    assert len(pictures) == 5
    for name in pictures:
        split, image_id = Path(name).parent.name, int(Path(name).stem)
        assert few[name] == many[name]
        assert annotations_of(tmp_path / "few", split, image_id) == annotations_of(root, split, image_id)


def test_train_and_val_share_no_picture_and_no_id(root):
    content = {
        split: json.loads((root / "annotations" / f"instances_{split}.json").read_text())
        for split in ("train2017", "val2017")
    }
    for key in ("images", "annotations"):
        train, val = ({entry["id"] for entry in content[split][key]} for split in ("train2017", "val2017"))
        assert train and val and not train & val
    pictures = [data for name, data in contents(root).items() if name.endswith(".jpg")]
    assert len(set(pictures)) == NUM_TRAIN + NUM_VAL


@pytest.mark.parametrize("split, count", [("train2017", NUM_TRAIN), ("val2017", NUM_VAL)])
def test_layout_is_that_of_coco_2017(root, split, count):
    coco = COCO(root / "annotations" / f"instances_{split}.json")
    assert len(coco.imgs) == count
    assert [coco.cats[i]["name"] for i in (1, 2, 3)] == list(CLASS_NAMES)
    for image in coco.imgs.values():
        with Image.open(root / split / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
            assert picture.mode == "RGB" and 128 <= min(picture.size) <= max(picture.size) <= 160
        assert 2 <= len(coco.imgToAnns[image["id"]]) <= 6


def test_box_and_area_are_those_of_the_mask(coco):
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert annotation["bbox"] == box
        assert annotation["area"] == mask.sum()
        assert annotation["iscrowd"] == 0


def test_polygons_are_the_drawn_pixels_and_stay_in_the_picture(coco):
    at_the_border = 0
    for image_id, image in coco.imgs.items():
        _, shapes = draw_image(np.random.default_rng([0, 0, image_id - 1]))
        for shape, (annotation, mask) in zip(shapes, decoded_masks(coco, image_id), strict=True):
            if isinstance(annotation["segmentation"], dict):
                assert np.array_equal(mask, shape.visible)
                continue
            assert (mask & shape.visible).sum() > 0.88 * (mask | shape.visible).sum()
            points = np.array(annotation["segmentation"][0]).reshape(-1, 2)
            assert (points >= 0).all() and (points <= (image["width"], image["height"])).all()
            at_the_border += (points == 0).any() or (points == (image["width"], image["height"])).any()
    assert at_the_border > 0


def test_masks_of_a_picture_do_not_overlap(coco):
    overlapping_boxes = 0
    for image_id in coco.imgs:
        for (first, mask), (second, other) in itertools.combinations(decoded_masks(coco, image_id), 2):
            are_run_lengths = isinstance(first["segmentation"], dict) and isinstance(second["segmentation"], dict)
            # A polygon is rasterised anew by whoever reads it: pixels on its edge may fall to both.
            allowed = 0 if are_run_lengths else 0.05 * min(mask.sum(), other.sum())
            assert (mask & other).sum() <= allowed
            overlapping_boxes += mask_codec.iou([first["bbox"]], [second["bbox"]], [0])[0, 0] > 0
    assert overlapping_boxes > 10


def test_a_hole_is_not_part_of_the_mask():
    holes, objects = 0, 0
    for index in range(NUM_TRAIN):
        _, shapes = draw_image(np.random.default_rng([0, 0, index]))
        objects += len(shapes)
        for shape in shapes:
            if shape.hole is None:
                continue
            holes += 1
            height, width = shape.visible.shape
            inside_hole = (
                mask_codec.decode(mask_codec.frPyObjects([shape.hole.ravel().tolist()], height, width))[..., 0] == 1
            )
            assert (shape.visible & inside_hole).sum() <= 0.25 * inside_hole.sum()  # pixels that the hole's edge cuts
    assert 0.1 * objects < holes < 0.35 * objects


def test_no_object_is_a_fragment():
    for index in range(NUM_TRAIN):
        for shape in draw_image(np.random.default_rng([0, 0, index]))[1]:
            assert shape.visible.sum() >= 60
            assert shape.is_recognisable(shape.visible)


def test_all_classes_and_sizes_occur(coco):
    assert {annotation["category_id"] for annotation in coco.anns.values()} == {1, 2, 3}
    sizes = np.sqrt([annotation["bbox"][2] * annotation["bbox"][3] for annotation in coco.anns.values()])
    assert sizes.min() < 32 and 50 < sizes.max() < 70
    assert 30 < np.median(sizes) < 50


def test_a_class_has_a_typical_colour_with_variation():
    """Hue of the visible pixels of each object, in turns of the colour wheel from its class's typical hue."""
    turns = []
    for index in range(2 * NUM_TRAIN):
        pixels, shapes = draw_image(np.random.default_rng([0, 0, index]))
        for shape in shapes:
            red, green, blue = pixels[shape.visible].mean(axis=0)
            hue = np.arctan2(3**0.5 * (green - blue), 2 * red - green - blue) / (2 * np.pi)
            turns.append((hue - demo_dataset.CLASS_HUES[shape.category_id - 1] + 0.5) % 1 - 0.5)
    assert np.mean(np.abs(turns) < 1 / 6) > 0.97  # nearer to the hue of its own class than to that of another
    assert np.std(turns) > 0.03


def test_boxes_of_one_class_do_not_overlap(coco):
    for image_id in coco.imgs:
        for first, second in itertools.combinations(coco.imgToAnns[image_id], 2):
            if first["category_id"] == second["category_id"]:
                assert mask_codec.iou([first["bbox"]], [second["bbox"]], [0])[0, 0] < 0.02  # rounded to whole pixels


def test_a_complete_dataset_is_not_drawn_again(root, monkeypatch):
    def refuse(*_):
        raise AssertionError("drew a picture")

    monkeypatch.setattr(demo_dataset, "draw_image", refuse)
    make_demo_dataset(root, NUM_TRAIN, NUM_VAL)


@pytest.mark.parametrize("other", [{"seed": 1}, {"num_train": NUM_TRAIN + 1}, {"num_val": NUM_VAL + 1}])
def test_a_different_dataset_is_refused_and_kept(root, other):
    before = contents(root)
    with pytest.raises(ValueError, match="delete that folder or choose another") as error:
        make_demo_dataset(root, **{"num_train": NUM_TRAIN, "num_val": NUM_VAL, **other})
    assert str(root) in str(error.value)
    assert contents(root) == before


def test_another_version_or_missing_pictures_are_refused(tmp_path, monkeypatch):
    root = tmp_path / "data"
    make_demo_dataset(root, 2, 1)
    with monkeypatch.context() as patch:
        patch.setattr(demo_dataset, "VERSION", "0.0")
        with pytest.raises(ValueError, match="something other"):
            make_demo_dataset(root, 2, 1)
    next((root / "train2017").glob("*.jpg")).unlink()
    with pytest.raises(ValueError, match="something other"):
        make_demo_dataset(root, 2, 1)


def test_a_folder_with_other_files_is_refused_and_an_empty_one_is_filled(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="something other"):
        make_demo_dataset(tmp_path, 2, 1)
    (tmp_path / "empty").mkdir()
    make_demo_dataset(tmp_path / "empty", 2, 1)
    assert (tmp_path / "empty" / "annotations" / "instances_val2017.json").is_file()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    drawn = []

    def interrupted(rng):
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append(rng)
        return draw_image(rng)

    monkeypatch.setattr(demo_dataset, "draw_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_demo_dataset(tmp_path / "data", 2, 2)
    assert len(drawn) == 3 and not list(tmp_path.iterdir())


def test_a_race_of_two_processes_leaves_one_dataset(tmp_path, monkeypatch):
    root, write = tmp_path / "data", demo_dataset.write_dataset

    def overtaken(drawn, info):
        write(drawn, info)
        write(root, info)

    monkeypatch.setattr(demo_dataset, "write_dataset", overtaken)
    make_demo_dataset(root, 2, 1)
    assert list(tmp_path.iterdir()) == [root]


@pytest.mark.parametrize("bad", [{"num_train": 0}, {"num_val": 0}, {"seed": -1}])
def test_counts_and_seed_out_of_range_are_refused(tmp_path, bad):
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        make_demo_dataset(tmp_path / "data", **bad)
    assert not list(tmp_path.iterdir())


def test_command_draws_and_names_a_mistake_in_one_line(tmp_path):
    def command(*arguments: str) -> Outcome:
        return run(tmp_path, "train_utils/demo_dataset.py", "--root", "data", *arguments)

    succeeded(command("--num-train", "2", "--num-val", "1", "--seed", "5"))
    assert len(list((tmp_path / "data").rglob("*.jpg"))) == 3
    refused = command("--num-train", "3", "--num-val", "1", "--seed", "5")
    assert refused.code == 2
    assert "data" in refused.err.splitlines()[-1] and "Traceback" not in refused.err
