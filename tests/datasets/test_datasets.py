"""The two datasets: every annotation arrives with its own label, box and mask, and what cannot be used is named."""

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from my_dataset_coco import CocoDetection, labels_of_categories
from my_dataset_voc import VOCInstances
from train_utils.metrics.coco_evaluation import run_cocoeval
from transforms import Compose, RandomHorizontalFlip

# pycocotools' decoder and numpy 2 do not yet agree on what __array__ takes.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# ---------------------------------------------------------------------------------------------------- a COCO folder

NAMES = ("ape", "bear", "cat", "deer")
BACKGROUND = (10, 20, 30)
# Pictures by id: height and width. The file's order is not the order of the ids.
PICTURES = {7: (30, 40), 3: (50, 20), 9: (24, 24), 5: (16, 32)}
# Objects as x1, y1, x2, y2, category's place in NAMES, crowd, form of the mask, in the order of the file.
# Picture 7 has every form of mask, picture 3 nothing, picture 9 only a crowd, picture 5 only a box without area.
OBJECTS = (
    (7, (5, 3, 15, 13), 3, 0, "polygon"),
    (9, (2, 2, 22, 20), 1, 1, "counts"),
    (7, (20, 6, 40, 30), 0, 0, "counts"),
    (5, (4, 4, 4, 9), 2, 0, "packed"),
    (7, (0, 20, 9, 28), 2, 0, "packed"),
    (7, (16, 0, 39, 5), 3, 1, "counts"),
)


def rectangle(box: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W] with ones from x1, y1 up to and without x2, y2."""
    plane = np.zeros(size, dtype=np.uint8)
    plane[box[1] : box[3], box[0] : box[2]] = 1
    return plane


def segmentation(box: Sequence[int], size: tuple[int, int], form: str) -> list | dict:
    x1, y1, x2, y2 = box
    if form == "polygon":
        return [[x1, y1, x2, y1, x2, y2, x1, y2]]
    plane = rectangle(box, size)
    if form == "packed":
        code = coco_mask.encode(np.asfortranarray(plane))
        return {"size": list(size), "counts": code["counts"].decode()}
    column = plane.T.reshape(-1)
    changes = np.flatnonzero(np.diff(column, prepend=0))
    return {"size": list(size), "counts": np.diff(changes, prepend=0, append=column.size).tolist()}


def make_coco(root: Path, category_ids: Sequence[int] = (1, 2, 3, 4)) -> Path:
    """Both splits alike; pictures are PNGs, in which each object has a colour of its own."""
    images = [
        {"id": i, "height": h, "width": w, "file_name": f"{i}.png", "license": 1} for i, (h, w) in PICTURES.items()
    ]
    annotations = [
        {
            "id": 100 + number,
            "image_id": image_id,
            "category_id": category_ids[place],
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "area": (box[2] - box[0]) * (box[3] - box[1]) + 0.5,
            "iscrowd": crowd,
            "segmentation": segmentation(box, PICTURES[image_id], form),
        }
        for number, (image_id, box, place, crowd, form) in enumerate(OBJECTS)
    ]
    # the categories' order in the file says nothing either
    categories = [{"id": i, "name": name} for i, name in reversed(list(zip(category_ids, NAMES)))]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        for image_id, size in PICTURES.items():
            draw_rectangles(root / split / f"{image_id}.png", size, [o[1] for o in OBJECTS if o[0] == image_id])
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def colour_of(number: int) -> tuple[int, int, int]:
    return 60 + 30 * number, 200 - 20 * number, 90 + 5 * number


def draw_rectangles(path: Path, size: tuple[int, int], boxes: Sequence[Sequence[int]]) -> None:
    pixels = np.full((*size, 3), BACKGROUND, dtype=np.uint8)
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        pixels[y1:y2, x1:x2] = colour_of(number)
    Image.fromarray(pixels).save(path)


def tight_box(mask: torch.Tensor) -> list[int]:
    """x1y1x2y2 around the ones of [H, W], the right and lower edges beyond the last pixel."""
    rows, columns = torch.where(mask.any(1))[0], torch.where(mask.any(0))[0]
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def edit_annotations(root: Path, split: str, edit) -> Path:
    path = root / "annotations" / f"instances_{split}2017.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return path


def quiet_coco(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


@pytest.fixture(scope="module")
def coco_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_coco(tmp_path_factory.mktemp("coco") / "data")


@pytest.fixture(scope="module")
def train(coco_root: Path) -> CocoDetection:
    return CocoDetection(coco_root, "train")


@pytest.fixture(scope="module")
def val(coco_root: Path) -> CocoDetection:
    return CocoDetection(coco_root, "val")


# -------------------------------------------------------------------------------------------------- COCO: the items


def test_training_keeps_only_pictures_with_a_usable_object(train):
    assert [train[i][1]["image_id"] for i in range(len(train))] == [7]
    assert train.target(0)["labels"].tolist() == [4, 1, 3]
    assert train.target(0)["iscrowd"].tolist() == [0, 0, 0]


def test_evaluation_keeps_every_picture_and_every_crowd(val):
    assert [val.target(i)["image_id"] for i in range(len(val))] == [7, 3, 9, 5]
    assert [val.target(i)["iscrowd"].tolist() for i in range(4)] == [[0, 0, 0, 1], [], [1], [1]]


def test_item_has_the_promised_types_and_shapes(val):
    for i, count in enumerate((4, 0, 1, 1)):
        image, target = val[i]
        assert image.dtype == torch.uint8 and image.shape == (3, *val.get_height_and_width(i))
        assert set(target) == {"boxes", "labels", "masks", "image_id", "area", "iscrowd"}
        assert target["boxes"].dtype == torch.float32 and target["boxes"].shape == (count, 4)
        assert target["area"].dtype == torch.float32 and target["area"].shape == (count,)
        for key in ("labels", "iscrowd"):
            assert target[key].dtype == torch.int64 and target[key].shape == (count,)
        assert isinstance(target["image_id"], int)
        assert len(target["masks"]) == count and target["masks"].size == val.get_height_and_width(i)


def test_boxes_are_corners_and_areas_are_those_of_the_file(val):
    target = val.target(0)
    boxes = [box for image_id, box, *_ in OBJECTS if image_id == 7]
    assert target["boxes"].tolist() == [list(map(float, box)) for box in boxes]
    assert target["area"].tolist() == [(x2 - x1) * (y2 - y1) + 0.5 for x1, y1, x2, y2 in boxes]


def test_every_form_of_mask_gives_its_pixels(val):
    boxes = [box for image_id, box, *_ in OBJECTS if image_id == 7]
    expected = np.stack([rectangle(box, PICTURES[7]) for box in boxes])
    assert np.array_equal(val.target(0)["masks"].dense().numpy(), expected)


def test_image_has_each_object_where_its_mask_says(val):
    image, target = val[0]
    for number in (0, 1, 2):  # the crowd lies over others
        under = image[:, target["masks"].dense()[number].bool()]
        assert (under == torch.tensor(colour_of(number)).reshape(3, 1)).all()


def test_boxes_are_clipped_to_the_picture(coco_root, tmp_path):
    root = make_coco(tmp_path / "data")
    edit_annotations(root, "train", lambda c: c["annotations"][0].update(bbox=[-3, -2, 100, 15]))
    assert CocoDetection(root).target(0)["boxes"][0].tolist() == [0, 0, 40, 13]


def test_height_and_width_come_from_the_annotations(val):
    assert [val.get_height_and_width(i) for i in range(4)] == list(PICTURES.values())


def test_collate_keeps_pictures_of_different_sizes_apart(val):
    batch = [val[0], val[1]]
    images, targets = CocoDetection.collate_fn(batch)
    assert [tuple(image.shape) for image in images] == [(3, 30, 40), (3, 50, 20)]
    assert [target["image_id"] for target in targets] == [7, 3]
    assert images[0] is batch[0][0] and targets[1] is batch[1][1]


def test_ground_truth_for_evaluation_is_the_whole_file(val):
    assert sorted(val.coco.getImgIds()) == [3, 5, 7, 9]
    assert sorted(val.coco.getAnnIds()) == [100, 101, 102, 103, 104, 105]
    assert val.coco is val.coco


# ------------------------------------------------------------------------------------------------- COCO: the labels


def test_labels_are_the_category_ids_where_these_fit():
    assert labels_of_categories([1, 2, 3, 4]) == {1: 1, 2: 2, 3: 3, 4: 4}
    assert labels_of_categories([3, 1, 8, 5]) == {1: 1, 3: 3, 5: 5, 8: 8}  # the largest is just twice their number
    assert labels_of_categories([2]) == {2: 2}


def test_labels_count_from_one_where_category_ids_do_not_fit():
    assert labels_of_categories([0, 1, 2, 3]) == {1: 0, 2: 1, 3: 2, 4: 3}
    assert labels_of_categories([9, 1, 5, 3]) == {1: 1, 2: 3, 3: 5, 4: 9}  # the largest is one more than twice
    assert labels_of_categories([2000, 1000]) == {1: 1000, 2: 2000}
    assert labels_of_categories([3]) == {1: 3}
    assert labels_of_categories([-1, 1]) == {1: -1, 2: 1}


@pytest.mark.parametrize(
    "category_ids, labels",
    [
        ((1, 2, 3, 4), (1, 2, 3, 4)),
        ((1, 4, 6, 8), (1, 4, 6, 8)),
        ((0, 1, 2, 3), (1, 2, 3, 4)),
        ((1000, 2000, 3000, 7), (2, 3, 4, 1)),
    ],
)
def test_items_and_names_follow_the_label_rule(tmp_path, category_ids, labels):
    dataset = CocoDetection(make_coco(tmp_path / "data", category_ids))
    assert dataset.class_names == dict(zip(labels, NAMES))
    assert dataset.category_ids == dict(zip(labels, category_ids))
    assert dataset.target(0)["labels"].tolist() == [labels[3], labels[0], labels[2]]


# --------------------------------------------------------------------------------------------------- COCO: the flip


def test_flipped_boxes_masks_and_pixels_agree(train):
    image, target = train[0]
    flipped_image, flipped = RandomHorizontalFlip(1.0)(image, target)
    assert torch.equal(flipped_image, image.flip(-1))
    masks = flipped["masks"].dense()
    assert torch.equal(masks, target["masks"].dense().flip(-1))
    assert [tight_box(mask) for mask in masks] == flipped["boxes"].tolist()
    assert flipped["boxes"].tolist() != target["boxes"].tolist()
    for number, mask in enumerate(masks):
        assert (flipped_image[:, mask.bool()] == torch.tensor(colour_of(number)).reshape(3, 1)).all()
    assert torch.equal(flipped["labels"], target["labels"])


def test_flipping_twice_gives_the_item_back_and_leaves_the_first_alone(train):
    image, target = train[0]
    before = target["boxes"].clone()
    again, restored = Compose([RandomHorizontalFlip(1.0), RandomHorizontalFlip(1.0)])(image, target)
    assert torch.equal(again, image) and torch.equal(target["boxes"], before)
    assert torch.equal(restored["boxes"], before)
    assert torch.equal(restored["masks"].dense(), target["masks"].dense())


def test_flip_happens_as_often_as_its_probability_says(train):
    image, target = train[0]
    torch.manual_seed(3)
    flips = sum(RandomHorizontalFlip(0.25)(image, target)[0] is not image for _ in range(400))
    assert 70 <= flips <= 130
    assert all(RandomHorizontalFlip(0.0)(image, target)[0] is image for _ in range(50))


def test_dataset_applies_its_transforms(coco_root, train):
    flipped = CocoDetection(coco_root, "train", RandomHorizontalFlip(1.0))
    assert torch.equal(flipped[0][0], train[0][0].flip(-1))


# ------------------------------------------------------------------------------------------ COCO: what cannot be used


def test_picture_of_another_size_than_annotated_is_named(tmp_path):
    root = make_coco(tmp_path / "data")
    Image.new("RGB", (41, 30)).save(root / "train2017" / "7.png")
    with pytest.raises(ValueError, match=r"train2017/7\.png.*41x30.*40x30"):
        CocoDetection(root)[0]


def test_missing_files_are_named(tmp_path):
    root = make_coco(tmp_path / "data")
    with pytest.raises(FileNotFoundError, match="instances_test2017.json"):
        CocoDetection(root, "test")
    (root / "train2017" / "7.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"train2017/7\.png"):
        CocoDetection(root)[0]
    for picture in (root / "train2017").iterdir():
        picture.unlink()
    (root / "train2017").rmdir()
    with pytest.raises(FileNotFoundError, match="train2017"):
        CocoDetection(root)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        CocoDetection(root / "nowhere")


def test_unreadable_picture_is_named(tmp_path):
    root = make_coco(tmp_path / "data")
    (root / "train2017" / "7.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"train2017/7\.png"):
        CocoDetection(root)[0]


def remove(mapping: dict, key: str) -> None:
    del mapping[key]


@pytest.mark.parametrize(
    "edit, named",
    [
        (lambda c: remove(c, "images"), "images"),
        (lambda c: c["annotations"][2].update(image_id=77), "annotation 102.*77"),
        (lambda c: c["annotations"][2].update(category_id=66), "annotation 102.*66"),
        (lambda c: c["annotations"][2].update(bbox=[1, 2, 3]), "annotation 102.*3 numbers"),
        (lambda c: c["annotations"][2]["segmentation"].update(size=[5, 5]), r"annotation 102.*\[5, 5\]"),
    ],
)
def test_unusable_annotations_are_named_with_their_file(tmp_path, edit, named):
    path = edit_annotations(make_coco(tmp_path / "data"), "train", edit)
    with pytest.raises(ValueError, match=f"{path.name}.*{named}"):
        CocoDetection(tmp_path / "data")


@pytest.mark.parametrize(
    "edit, kind",
    [
        (lambda c: remove(c["annotations"][2], "bbox"), "no box"),
        (lambda c: remove(c["images"][0], "height"), "no size"),
        (lambda c: remove(c["annotations"][2], "segmentation"), "no segmentation"),
    ],
)
def test_what_can_be_repaired_is_and_is_noted(tmp_path, edit, kind):
    edit_annotations(make_coco(tmp_path / "data"), "train", edit)
    assert CocoDetection(tmp_path / "data").problems.counts[kind] == 1


# -------------------------------------------------------------------------------------------------------- COCO: photos


@pytest.mark.parametrize("split", ["train", "val"])
def test_annotations_of_photos_arrive_complete_with_pycocotools_masks(data_folder, split):
    root = data_folder / "coco_tiny"
    dataset = CocoDetection(root, split)
    truth = quiet_coco(root / "annotations" / f"instances_{split}2017.json")
    assert len(dataset) == len(truth.imgs) and dataset.category_ids == {i: i for i in truth.getCatIds()}
    assert dataset.class_names == {c["id"]: c["name"] for c in truth.loadCats(truth.getCatIds())}
    found = found_crowds = 0
    for i in range(len(dataset)):
        target = dataset.target(i)
        record = truth.imgs[target["image_id"]]
        assert dataset.get_height_and_width(i) == (record["height"], record["width"])
        annotations = [a for a in truth.imgToAnns[record["id"]] if split == "val" or not a["iscrowd"]]
        assert target["labels"].tolist() == [a["category_id"] for a in annotations]
        assert target["iscrowd"].tolist() == [a["iscrowd"] for a in annotations]
        assert target["area"].numpy() == pytest.approx([a["area"] for a in annotations])
        corners = np.array([a["bbox"] for a in annotations]) @ np.array(
            [[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]]
        )
        assert target["boxes"].numpy() == pytest.approx(corners, abs=0.02)  # some reach a hundredth beyond the edge
        for mask, annotation in zip(target["masks"].dense().numpy(), annotations):
            assert np.array_equal(mask, truth.annToMask(annotation)), annotation["id"]
        found += len(annotations)
        found_crowds += sum(target["iscrowd"].tolist())
    crowds = sum(a["iscrowd"] for a in truth.anns.values())
    assert crowds > 0
    expected = (len(truth.anns), crowds) if split == "val" else (len(truth.anns) - crowds, 0)
    assert (found, found_crowds) == expected


def test_photos_fit_their_annotations(data_folder):
    dataset = CocoDetection(data_folder / "coco_tiny", "train")
    for i in range(0, len(dataset), len(dataset) // 5):
        image, target = dataset[i]
        assert image.dtype == torch.uint8 and tuple(image.shape[1:]) == target["masks"].size
        with Image.open(dataset.image_path(i)) as picture:
            assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(picture.convert("RGB")))


# ----------------------------------------------------------------------------------------------------- a VOC folder

DEVKIT_ORDER = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOID_LABEL = 255
HEIGHT, WIDTH = 36, 48


class Thing:
    """An object of a VOC picture: what its XML says, and the mask's rectangle within a contour of one pixel."""

    def __init__(self, name: str, box: Sequence[int], number: int | None, difficult: bool = False, part: bool = False):
        self.name, self.box, self.number, self.difficult, self.part = name, box, number, difficult, part

    @property
    def label(self) -> int:
        return DEVKIT_ORDER.index(self.name) + 1

    def inside(self) -> tuple[int, int, int, int]:
        x1, y1, x2, y2 = self.box
        return x1 + 1, y1 + 1, x2 - 1, y2 - 1

    def mask(self) -> np.ndarray:
        return rectangle(self.box if self.number is None else self.inside(), (HEIGHT, WIDTH))

    def xml(self) -> str:
        x1, y1, x2, y2 = self.box
        part = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></part>"
        return (
            f"<object><name>{self.name}</name>{part if self.part else ''}<difficult>{int(self.difficult)}</difficult>"
            f"<bndbox><xmax>{x2}</xmax><xmin>{x1 + 1}</xmin><ymax>{y2}</ymax><ymin>{y1 + 1}</ymin></bndbox></object>"
        )


# In the order of the XML, which is not that of the numbers in the PNG; boxes 0-based, x2 and y2 beyond the last pixel.
# The first has a box and no mask; the difficult one stands between; two of one class are in the wrong order.
THINGS = (
    Thing("cat", (30, 20, 46, 34), None),
    Thing("dog", (25, 2, 40, 14), 3),
    Thing("person", (0, 16, 12, 36), 4, part=True),
    Thing("sheep", (14, 18, 24, 30), 2, difficult=True),
    Thing("dog", (2, 1, 20, 12), 1),
)


def make_voc(root: Path) -> Path:
    """Picture `one` with THINGS, `two` with a difficult sheep alone, `three` with one tvmonitor up to the edges."""
    folder = root / "VOCdevkit" / "VOC2012"
    for name in ("Annotations", "JPEGImages", "SegmentationObject", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    pictures = {
        "one": THINGS,
        "two": (Thing("sheep", (3, 3, 20, 20), 1, difficult=True),),
        "three": (Thing("tvmonitor", (0, 0, WIDTH, HEIGHT), 1),),
    }
    for name, things in pictures.items():
        instances = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        classes = instances.copy()
        for thing in things:
            if thing.number is not None:
                x1, y1, x2, y2 = thing.box
                instances[y1:y2, x1:x2] = classes[y1:y2, x1:x2] = VOID_LABEL
                x1, y1, x2, y2 = thing.inside()
                instances[y1:y2, x1:x2] = thing.number
                classes[y1:y2, x1:x2] = thing.label
        save_palette(instances, folder / "SegmentationObject" / f"{name}.png")
        save_palette(classes, folder / "SegmentationClass" / f"{name}.png")
        Image.new("RGB", (WIDTH, HEIGHT), (9, 90, 190)).save(folder / "JPEGImages" / f"{name}.jpg")
        (folder / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.jpg</filename><size><width>{WIDTH}</width><height>{HEIGHT}</height>"
            f"<depth>3</depth></size>{''.join(thing.xml() for thing in things)}</annotation>"
        )
    for split in ("train", "val"):
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("one\ntwo\nthree\n")
    return root


def save_palette(indices: np.ndarray, path: Path) -> None:
    picture = Image.fromarray(indices, mode="P")
    picture.putpalette([value for i in range(256) for value in (i, 255 - i, i // 2)])
    picture.save(path)


@pytest.fixture(scope="module")
def voc_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_voc(tmp_path_factory.mktemp("voc"))


@pytest.fixture(scope="module")
def voc_train(voc_root: Path) -> VOCInstances:
    return VOCInstances(voc_root, txt_name="train.txt")


@pytest.fixture(scope="module")
def voc_val(voc_root: Path) -> VOCInstances:
    return VOCInstances(voc_root, txt_name="val.txt")


# --------------------------------------------------------------------------------------------------- VOC: the items


def assert_holds(target: dict, things: Sequence[Thing]) -> None:
    assert target["labels"].tolist() == [thing.label for thing in things]
    assert target["boxes"].tolist() == [list(map(float, thing.box)) for thing in things]
    expected = [thing.mask() for thing in things]
    assert np.array_equal(target["masks"].dense().numpy(), np.stack(expected))
    assert target["area"].tolist() == [float(mask.sum()) for mask in expected]


def test_objects_get_their_own_masks_whatever_the_order_of_the_xml(voc_train):
    """Without the cat, which has no mask, and without the difficult sheep, nobody's mask moves to a neighbour."""
    dog, person, other_dog = THINGS[1], THINGS[2], THINGS[4]
    assert_holds(voc_train.target(0), [dog, person, other_dog])
    assert voc_train.target(0)["iscrowd"].tolist() == [0, 0, 0]


def test_evaluation_keeps_difficult_and_maskless_objects_as_crowds(voc_val):
    assert_holds(voc_val.target(0), THINGS)
    assert voc_val.target(0)["iscrowd"].tolist() == [1, 0, 0, 1, 0]


def test_training_leaves_out_pictures_of_difficult_objects_alone(voc_train, voc_val):
    assert [voc_train.target(i)["image_id"] for i in range(len(voc_train))] == [1, 3]
    assert [voc_val.target(i)["image_id"] for i in range(len(voc_val))] == [1, 2, 3]
    assert [path.name for path in map(voc_train.image_path, range(2))] == ["one.jpg", "three.jpg"]


def test_voc_training_has_no_item_without_object(tmp_path):
    folder = make_voc(tmp_path) / "VOCdevkit" / "VOC2012"
    for name in ("SegmentationObject", "SegmentationClass"):
        save_palette(np.zeros((HEIGHT, WIDTH), dtype=np.uint8), folder / name / "three.png")
    dataset = VOCInstances(tmp_path)
    assert [len(dataset.target(i)["labels"]) for i in range(len(dataset))] == [3]


def test_boxes_are_zero_based_and_whole_pictures_fill_the_picture(voc_train):
    """1..48 and 1..36 in the file are all pixels of a picture of 48x36."""
    assert voc_train.target(1)["boxes"].tolist() == [[0, 0, WIDTH, HEIGHT]]


def test_contours_belong_to_nobody(voc_train):
    (mask,) = voc_train.target(1)["masks"].dense()
    assert mask[1:-1, 1:-1].all() and mask.sum() == (HEIGHT - 2) * (WIDTH - 2)


def test_parts_are_no_objects(voc_val):
    person = voc_val.target(0)["boxes"][2].tolist()
    assert person == [0, 16, 12, 36] and len(voc_val.target(0)["boxes"]) == len(THINGS)


def test_voc_items_have_the_form_of_coco_items(voc_val, val):
    (voc_image, voc_target), (coco_image, coco_target) = voc_val[0], val[0]
    assert voc_image.dtype == coco_image.dtype and voc_image.shape == (3, HEIGHT, WIDTH)
    assert set(voc_target) == set(coco_target)
    for key, value in coco_target.items():
        assert type(voc_target[key]) is type(value)
        if isinstance(value, torch.Tensor):
            assert voc_target[key].dtype == value.dtype
    assert voc_val.get_height_and_width(0) == (HEIGHT, WIDTH)


def test_class_names_are_in_the_order_of_the_devkit(voc_val):
    assert voc_val.class_names == dict(enumerate(DEVKIT_ORDER, start=1))
    assert voc_val.category_ids == {label: label for label in range(1, 21)}


@pytest.mark.parametrize("below", ["VOCdevkit", "VOCdevkit/VOC2012"])
def test_every_form_of_root_gives_the_same(voc_root, voc_val, below):
    other = VOCInstances(voc_root / below, txt_name="val.txt")
    assert other.coco_content() == voc_val.coco_content()
    assert torch.equal(other[0][0], voc_val[0][0])


def test_flipped_voc_boxes_and_masks_agree(voc_train):
    image, target = voc_train[0]
    _, flipped = RandomHorizontalFlip(1.0)(image, target)
    assert torch.equal(flipped["masks"].dense(), target["masks"].dense().flip(-1))
    for mask, box in zip(flipped["masks"].dense(), flipped["boxes"].tolist()):
        x1, y1, x2, y2 = box
        assert tight_box(mask) == [x1 + 1, y1 + 1, x2 - 1, y2 - 1]


# ------------------------------------------------------------------------------------------ VOC: the ground truth


def perfect_results(dataset: VOCInstances | CocoDetection) -> dict[str, list[dict]]:
    """Every object that is no crowd, found exactly, in COCO's results format, made by pycocotools from dense masks."""
    boxes, masks = [], []
    for i in range(len(dataset)):
        target = dataset.target(i)
        planes = target["masks"].dense().numpy()
        for k in np.flatnonzero(target["iscrowd"].numpy() == 0):
            category = dataset.category_ids[int(target["labels"][k])]
            common = {"image_id": target["image_id"], "category_id": category, "score": 0.9}
            x1, y1, x2, y2 = target["boxes"][k].tolist()
            boxes.append({**common, "bbox": [x1, y1, x2 - x1, y2 - y1]})
            code = coco_mask.encode(np.asfortranarray(planes[k]))
            masks.append({**common, "segmentation": {"size": code["size"], "counts": code["counts"].decode()}})
    return {"bbox": boxes, "segm": masks}


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_perfect_detections_on_voc_have_an_ap_of_one(voc_val, iou_type):
    stats = run_cocoeval(voc_val.coco, perfect_results(voc_val)[iou_type], iou_type).stats
    assert stats[0] == stats[1] == stats[2] == stats[8] == 1.0


def test_ground_truth_of_voc_holds_its_masks_and_crowds(voc_val):
    content = voc_val.coco_content()
    assert [image["id"] for image in content["images"]] == [1, 2, 3]
    of_first = [a for a in content["annotations"] if a["image_id"] == 1]
    assert [a["iscrowd"] for a in of_first] == [1, 0, 0, 1, 0]
    for annotation, thing in zip(of_first, THINGS):
        assert np.array_equal(coco_mask.decode(annotation["segmentation"]), thing.mask())
        x1, y1, x2, y2 = thing.box
        assert annotation["bbox"] == [x1, y1, x2 - x1, y2 - y1]
    assert len({a["id"] for a in content["annotations"]}) == len(content["annotations"])
    assert 0 not in {a["id"] for a in content["annotations"]}  # the metrics take id 0 for "no match"


# ------------------------------------------------------------------------------------------- VOC: what cannot be used


@pytest.mark.parametrize(
    "file",
    ["ImageSets/Segmentation/train.txt", "Annotations/one.xml", "SegmentationObject/one.png", "JPEGImages/one.jpg"],
)
def test_missing_voc_files_are_named(tmp_path, file):
    folder = make_voc(tmp_path) / "VOCdevkit" / "VOC2012"
    (folder / file).unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=f"{file}.*(not found|no such)"):
        VOCInstances(tmp_path)[0]


def test_missing_devkit_and_missing_year_are_named(voc_root, tmp_path):
    with pytest.raises(FileNotFoundError, match="VOC2012"):
        VOCInstances(tmp_path)
    with pytest.raises(FileNotFoundError, match="VOC2007"):
        VOCInstances(voc_root, year="2007")


@pytest.mark.parametrize(
    "old, new, named",
    [
        ("</annotation>", "", "one.xml"),
        ("<name>dog</name>", "<name>unicorn</name>", "one.xml.*unicorn"),
        ("<xmin>26</xmin>", "<xmin>60</xmin>", "one.xml.*dog"),
        ("<xmin>26</xmin>", "", "one.xml"),
    ],
)
def test_unusable_xml_is_named(tmp_path, old, new, named):
    path = make_voc(tmp_path) / "VOCdevkit" / "VOC2012" / "Annotations" / "one.xml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=named):
        VOCInstances(tmp_path)


@pytest.mark.parametrize("folder", ["JPEGImages", "SegmentationObject"])
def test_voc_file_of_another_size_than_its_xml_is_named(tmp_path, folder):
    suffix = {"JPEGImages": "jpg", "SegmentationObject": "png"}[folder]
    path = make_voc(tmp_path) / "VOCdevkit" / "VOC2012" / folder / f"one.{suffix}"
    Image.new("RGB" if suffix == "jpg" else "L", (WIDTH, HEIGHT + 1)).save(path)
    with pytest.raises(ValueError, match=rf"one\.{suffix}.*48x37.*48x36"):
        VOCInstances(tmp_path)[0]


# --------------------------------------------------------------------------------------------------------- VOC: photos


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_perfect_detections_on_voc_files_have_an_ap_of_one(data_folder, iou_type):
    dataset = VOCInstances(data_folder / "voc_tiny", txt_name="val.txt")
    stats = run_cocoeval(dataset.coco, perfect_results(dataset)[iou_type], iou_type).stats
    assert stats[0] == stats[1] == stats[2] == 1.0


@pytest.mark.parametrize("split", ["train", "val"])
def test_voc_masks_lie_in_their_boxes(data_folder, split):
    """At most one object of a split has a box and no mask; the others stay with their own."""
    dataset = VOCInstances(data_folder / "voc_tiny", txt_name=f"{split}.txt")
    assert len(dataset) == (23 if split == "train" else 24)  # all that one training picture shows is difficult
    objects = maskless = 0
    for i in range(len(dataset)):
        target = dataset.target(i)
        root = ElementTree.parse(
            dataset.image_folder.parent / "Annotations" / f"{dataset.image_path(i).stem}.xml"
        ).getroot()
        easy = [o for o in root.findall("object") if o.findtext("difficult", "0") != "1"]
        taught = target["boxes"][target["iscrowd"] == 0].tolist()
        objects, maskless = objects + len(easy), maskless + len(easy) - len(taught)
        corners = [[float(o.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")] for o in easy]
        assert all(box in [[x1 - 1, y1 - 1, x2, y2] for x1, y1, x2, y2 in corners] for box in taught)
        for mask, (x1, y1, x2, y2) in zip(target["masks"].dense(), target["boxes"].tolist()):
            left, top, right, bottom = tight_box(mask)
            assert left >= x1 - 3 and top >= y1 - 3 and right <= x2 + 3 and bottom <= y2 + 3
    assert maskless <= 1 and objects > 20  # an object without a mask may be difficult as well
