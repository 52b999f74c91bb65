"""COCO files with flaws of form: each is mended, counted, and gives the same items as the file without the flaw."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from dataset_files.coco_index import make_index
from dataset_files.coco_repair import REPAIRABLE, is_repairable, repair, whole_ids
from dataset_files.conversion_store import Converted
from dataset_files.image_files import is_lfs_pointer, resolve

SIZE = (40, 50)  # height, width
OUTLINE = [3, 4, 11, 4, 11, 13, 3, 13]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


def code(x: int, y: int, w: int, h: int) -> dict:
    plane = np.zeros(SIZE, dtype=np.uint8)
    plane[y : y + h, x : x + w] = 1
    packed = coco_mask.encode(np.asfortranarray(plane))
    return {"size": list(SIZE), "counts": packed["counts"].decode()}


def content() -> dict:
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in (1, 2)],
        "categories": [{"id": 1, "name": "ape"}, {"id": 2, "name": "bear"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [3, 4, 8, 9], "area": 72.0, "iscrowd": 0,
             "segmentation": [OUTLINE]},
            {"id": 2, "image_id": 2, "category_id": 2, "bbox": [20, 5, 10, 30], "area": 300.0, "iscrowd": 1,
             "segmentation": code(20, 5, 10, 30)},
            {"id": 3, "image_id": 2, "category_id": 1, "bbox": [3, 4, 8, 9], "area": 72.0, "iscrowd": 0,
             "segmentation": [OUTLINE]},
        ],
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in (1, 2):
        Image.new("RGB", SIZE[::-1]).save(tmp_path / f"{i}.png")
    return tmp_path


def change_all(key: str, change):
    def edit(c: dict) -> None:
        for number, entry in enumerate(c[key]):
            change(entry, number)

    return edit


def text_ids(c: dict) -> None:
    for image in c["images"]:
        image["id"] = str(image["id"])
    for category in c["categories"]:
        category["id"] = str(category["id"])
    for annotation in c["annotations"]:
        annotation.update(image_id=str(annotation["image_id"]), category_id=str(annotation["category_id"]))


def named_ids(c: dict) -> None:
    for image in c["images"]:
        image["id"] = f"photo-{image['id']}"
    for annotation in c["annotations"]:
        annotation["image_id"] = f"photo-{annotation['image_id']}"


def set_mask(make):
    return change_all("annotations", lambda a, n: n != 1 and a.update(segmentation=make()))


PAIRS = [[x, y] for x, y in zip(OUTLINE[::2], OUTLINE[1::2])]

# Name of the case, the flaw, the kind it is counted as, how often, whether the ordinary reading notices it.
FLAWS = [
    ("ids all 0", change_all("annotations", lambda a, n: a.update(id=0)), "renumbered", 3, True),
    ("ids missing", change_all("annotations", lambda a, n: a.pop("id")), "renumbered", 3, True),
    ("one id missing", lambda c: c["annotations"][1].pop("id"), "renumbered", 3, True),
    ("ids null", change_all("annotations", lambda a, n: a.update(id=None)), "renumbered", 3, True),
    ("ids are text", change_all("annotations", lambda a, n: a.update(id=str(a["id"]))), "renumbered", 3, True),
    ("ids are words", change_all("annotations", lambda a, n: a.update(id=f"a{n}")), "renumbered", 3, True),
    ("ids restart per image", lambda c: c["annotations"][1].update(id=1), "renumbered", 3, True),
    ("an annotation twice", lambda c: c["annotations"].append(copy.deepcopy(c["annotations"][0])), "repeated", 1, True),
    ("no bbox", change_all("annotations", lambda a, n: a.pop("bbox")), "no box", 3, True),
    ("bbox null", change_all("annotations", lambda a, n: a.update(bbox=None)), "no box", 3, True),
    ("bbox empty", change_all("annotations", lambda a, n: a.update(bbox=[])), "no box", 3, True),
    ("area null", change_all("annotations", lambda a, n: a.update(area=None)), "area", 3, True),
    ("area text", change_all("annotations", lambda a, n: a.update(area="72")), "area", 3, True),
    ("area NaN", change_all("annotations", lambda a, n: a.update(area=float("nan"))), "area", 3, True),
    ("area missing", change_all("annotations", lambda a, n: a.pop("area")), "area", 3, False),
    ("iscrowd text", change_all("annotations", lambda a, n: a.update(iscrowd=str(a["iscrowd"]))), "crowd", 3, True),
    ("iscrowd words", change_all("annotations", lambda a, n: a.update(iscrowd=["false", "True"][a["iscrowd"]])),
     "crowd", 3, True),
    ("iscrowd bool", change_all("annotations", lambda a, n: a.update(iscrowd=bool(a["iscrowd"]))), "crowd", 3, False),
    ("whole numbers as text", text_ids, "text id", 4, True),
    ("image ids are names", named_ids, "text id", 2, True),
    ("only image_id as text", change_all("annotations", lambda a, n: a.update(image_id=f"{a['image_id']}")),
     "text id", 2, True),
    ("flat polygons", set_mask(lambda: list(OUTLINE)), "flat polygon", 2, True),
    ("points as pairs", set_mask(lambda: [list(p) for p in PAIRS]), "converted pairs", 2, True),
    ("lists of pairs", set_mask(lambda: [[list(p) for p in PAIRS]]), "converted pairs", 2, True),
    ("points as x and y", set_mask(lambda: [[{"x": x, "y": y} for x, y in PAIRS]]), "converted pairs", 2, True),
    ("size exchanged", lambda c: c["annotations"][1]["segmentation"].update(size=[50, 40]), "exchanged size", 1, True),
    ("no height and width", change_all("images", lambda i, n: (i.pop("height"), i.pop("width"))), "no size", 2, True),
    ("height null", change_all("images", lambda i, n: i.update(height=None)), "no size", 2, True),
    ("size as text", change_all("images", lambda i, n: i.update(height="40", width="50")), "no size", 2, True),
    ("coco_url", change_all("images", lambda i, n: i.update(coco_url=f"http://x.org/val/{i.pop('file_name')}")),
     "url", 2, True),
    ("path", change_all("images", lambda i, n: i.update(path=f"/datasets/mine/{i.pop('file_name')}")), "url", 2, True),
    ("backslashes", change_all("images", lambda i, n: i.update(file_name=f"..\\..\\media\\{n + 1}.png")),
     "found elsewhere", 2, True),
    ("absolute names", change_all("images", lambda i, n: i.update(file_name=f"/label-studio/data/{n + 1}.png")),
     "found elsewhere", 2, True),
]  # fmt: skip


@pytest.mark.parametrize("edit, kind, count, noticed", [flaw[1:] for flaw in FLAWS], ids=[flaw[0] for flaw in FLAWS])
def test_flaw_is_mended_counted_and_leaves_the_same_objects(folder, edit, kind, count, noticed):
    flawed = content()
    edit(flawed)
    path = folder / "data.json"
    path.write_text(json.dumps(flawed))
    assert is_noticed(path) is noticed
    converted = Converted(*repair(path, folder))
    assert converted.problems.counts[kind] == count and not converted.problems.wrong()
    allowed = {kind, "found elsewhere"} if kind == "url" else {kind}
    assert set(converted.problems.counts) == allowed
    assert same_objects(converted.content)
    path.write_text(json.dumps(converted.content))
    index = make_index(path)
    assert index.problems.counts == {} and index.usable_counts().tolist() == [1, 1]
    assert not repair(path, folder)[1].counts


def is_noticed(path: Path) -> bool:
    """Whether reading a file as it is asks for its repair."""
    try:
        return not REPAIRABLE.isdisjoint(make_index(path).problems.counts)
    except ValueError as error:
        return is_repairable(error)


def same_objects(found: dict) -> bool:
    """Whether a content is the right one, but for the numbers of images and annotations."""
    names = {image["id"]: (image["file_name"], image["height"], image["width"]) for image in found["images"]}
    expected = content()
    own = [(names[a["image_id"]], {**a, "id": 0, "image_id": 0}) for a in found["annotations"]]
    right = [((f"{a['image_id']}.png", *SIZE), {**a, "id": 0, "image_id": 0}) for a in expected["annotations"]]
    ids = [a["id"] for a in found["annotations"]]
    return own == right and found["categories"] == expected["categories"] and ids == [1, 2, 3]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_other_encodings_are_read(folder, encoding):
    path = folder / "data.json"
    path.write_bytes(json.dumps(content()).encode(encoding))
    assert is_noticed(path)
    converted = Converted(*repair(path, folder))
    assert converted.problems.counts == {"encoding": 1} and same_objects(converted.content)


def test_right_file_is_left_alone(folder):
    path = folder / "data.json"
    path.write_text(json.dumps(content()))
    assert not is_noticed(path)
    converted = Converted(*repair(path, folder))
    assert converted.content == content() and converted.problems.counts == {}


@pytest.mark.parametrize(
    "edit, named",
    [
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "bbox of 3 numbers"),
        (lambda c: c["annotations"][0].update(image_id=77), "'image_id'|image 77"),
        (lambda c: c["annotations"].append(5), "not an object"),
        (lambda c: c["annotations"][0].update(bbox=None, segmentation=[]), "bbox|wrong type"),
        (lambda c: c["images"].append({"id": 3, "file_name": "../../etc/secret.png"}), "height|secret"),
        (lambda c: c["annotations"][1]["segmentation"].update(size=[41, 50]), r"\[41, 50\]"),
        (lambda c: c["annotations"][1].update(iscrowd="maybe"), "maybe"),
    ],
)
def test_what_cannot_be_mended_is_left_for_the_check(folder, edit, named):
    flawed = content()
    edit(flawed)
    path = folder / "data.json"
    path.write_text(json.dumps(flawed))
    path.write_text(json.dumps(repair(path, folder)[0]))
    problems = make_index(path).problems
    assert problems.wrong()
    with pytest.raises(ValueError, match=named):
        problems.require_none_wrong(path)


def test_categories_from_one_with_annotations_from_zero_are_refused_even_with_skip_bad(folder):
    flawed = content()
    for annotation in flawed["annotations"]:
        annotation["category_id"] -= 1
    path = folder / "data.json"
    path.write_text(json.dumps(flawed))
    for _ in range(2):
        problems = make_index(path).problems
        with pytest.raises(ValueError, match="category_id 0 to 1, 'categories' has 1 to 2.*number both alike"):
            problems.require_none_wrong(path, skip_bad=True)
        path.write_text(json.dumps(repair(path, folder)[0]))


def test_one_annotation_of_a_category_that_is_missing_is_no_other_numbering(folder):
    flawed = content()
    flawed["annotations"][0]["category_id"] = 0  # with 2 in use, all less one does not fit
    path = folder / "data.json"
    path.write_text(json.dumps(flawed))
    assert make_index(path).problems.wrong() == ["unknown category"]


@pytest.mark.parametrize("text", ["[1, 2]", '{"images": []}', '{"images": ['])
def test_what_is_no_instances_file_is_said(folder, text):
    path = folder / "data.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="data.json: "):
        repair(path, folder)


def test_roboflows_heading_is_dropped_only_if_no_annotation_uses_it(folder):
    path = folder / "data.json"
    own = content()
    own["categories"] = [
        {"id": 0, "name": "ape", "supercategory": "none"},
        {"id": 1, "name": "ape", "supercategory": "ape"},
        {"id": 2, "name": "bear", "supercategory": "ape"},
    ]
    path.write_text(json.dumps(own))
    index = make_index(path)
    assert index.categories == {1: "ape", 2: "bear"} and index.problems.counts == {"unused category": 1}
    own["annotations"][0]["category_id"] = 0
    path.write_text(json.dumps(own))
    assert list(make_index(path).categories) == [0, 1, 2]
    own["categories"][2]["supercategory"] = "none"
    own["annotations"][0]["category_id"] = 1
    path.write_text(json.dumps(own))
    assert list(make_index(path).categories) == [0, 1, 2]  # "none" alone says nothing


def test_unused_background_is_dropped(folder):
    path = folder / "data.json"
    own = content()
    own["categories"].insert(0, {"id": 0, "name": "_background_"})
    path.write_text(json.dumps(own))
    assert make_index(path).categories == {1: "ape", 2: "bear"}
    own["annotations"][0]["category_id"] = 0
    path.write_text(json.dumps(own))
    assert list(make_index(path).categories) == [0, 1, 2]


def test_polygons_that_cover_no_pixel_are_objects_without_a_mask(folder):
    path = folder / "data.json"
    own = content()
    thin = [[5.1, 5.1, 5.3, 5.1, 5.3, 30.2, 5.1, 30.2]], [[2, 2, 30, 30, 2, 4]], [[7.2, 7.2, 7.3, 7.2, 7.3, 7.3]]
    boxes = [5.1, 5.1, 0.2, 25.1], [2, 2, 28, 28], [7.2, 7.2, 0.1, 0.1]
    for number, (segmentation, bbox) in enumerate(zip(thin, boxes), start=4):
        codes = coco_mask.frPyObjects(segmentation, *SIZE)
        empty = not any(coco_mask.area(codes))
        assert empty is (number != 5)
        own["annotations"].append(own["annotations"][0] | {"id": number, "segmentation": segmentation, "bbox": bbox})
    path.write_text(json.dumps(own))
    index = make_index(path)
    assert index.problems.counts == {"no mask": 2} and index.usable_counts().tolist() == [2, 1]


def test_ids_get_the_same_numbers_everywhere():
    assert whole_ids(["7", "12", 3, 4.0]) == {"7": 7, "12": 12, "3": 3, "4": 4}
    assert whole_ids(["007", "7", "x"]) == {"007": 8, "7": 7, "x": 9}
    assert whole_ids([None, True, [1], 2**70, "9" * 40]) == {"9" * 40: 1}


# ------------------------------------------------------------------------------------------------------- file names


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    inside = tmp_path / "data"
    for name in ("a.jpg", "cam1/001.JPG", "cam2/001.JPG", "deep/er/Photo.png", "b c.jpg"):
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        (inside / name).write_bytes(b"x")
    (tmp_path / "outside.jpg").write_bytes(b"x")
    return inside


@pytest.mark.parametrize(
    "name, expected",
    [
        ("a.jpg", "a.jpg"), ("A.JPG", "a.jpg"), ("a.jpeg", "a.jpg"), ("a", "a.jpg"), ("x/y/a.jpg", "a.jpg"),
        ("x\\a.jpg", "a.jpg"), ("C:\\x\\a.jpg", "a.jpg"), ("/etc/a.jpg", "a.jpg"), ("photo.jpg", "deep/er/Photo.png"),
        ("../data/a.jpg", "a.jpg"), ("data/cam2/001.jpg", "cam2/001.JPG"), ("/data/local-files/?d=x/b%20c.jpg",
        "b c.jpg"), ("cam1/001.JPG", "cam1/001.JPG"), ("../outside.jpg", "../outside.jpg"), ("z.jpg", "z.jpg"),
        ("a.txt", "a.txt"), ("", ""), ("a\0.jpg", "a\0.jpg"),
    ],
)  # fmt: skip
def test_names_lead_to_the_one_file_that_fits(photos, name, expected):
    names, problems = resolve([name], photos)
    assert names == [expected]
    assert problems.counts == ({"found elsewhere": 1} if name != expected else {})


def test_of_two_files_that_fit_none_is_taken(photos):
    names, problems = resolve(["a.jpg", "001.jpg"], photos)
    assert names == ["a.jpg", "001.jpg"] and problems.counts == {"ambiguous": 1}
    assert "'001.jpg' may be 'cam1/001.JPG' or 'cam2/001.JPG'" in problems.describe("ambiguous")


def test_links_out_of_the_folder_are_not_found_but_linked_folders_are(photos, tmp_path):
    (photos / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "far.jpg").write_bytes(b"x")
    (photos / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(photos)  # a circle
    names, _ = resolve(["x/link.jpg", "x/far.jpg"], photos)
    assert names == ["x/link.jpg", "linked/far.jpg"]


def test_lfs_pointers_are_known(tmp_path):
    (tmp_path / "a").write_bytes(LFS)
    (tmp_path / "b").write_bytes(LFS + bytes(2000))
    (tmp_path / "c").write_bytes(b"version")
    assert [is_lfs_pointer(tmp_path / name) for name in "abcd"] == [True, False, False, False]


def test_lfs_pointer_in_place_of_the_annotations_is_said(tmp_path):
    (tmp_path / "instances.json").write_bytes(LFS)
    with pytest.raises(ValueError, match="instances.json: is a Git LFS pointer .*git lfs pull"):
        make_index(tmp_path / "instances.json")
