"""Ignore regions and objects without masks, from the files of every layout to the metrics; off, nothing changes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import transforms
from dataset_files.coco_file import IGNORE, Reading
from dataset_files.conversion_store import open_split_index
from dataset_files.layouts.find import find_layout
from my_dataset_coco import CocoDetection
from my_dataset_voc import VOCInstances
from network_files import InstanceMasks
from report.analysis import analyse
from report.eval_data import make_eval_data
from report.sources import content_of
from tests.helpers import coco_writers, layout_writers
from tests.helpers.broken_data import edit, make_coco, make_voc, save_palette
from tests.helpers.drawn_masks import HEIGHT, WIDTH, blobs
from tests.helpers.layout_writers import ONE_CLASS, SAMPLES
from train_utils.errors import InputError
from train_utils.metrics.coco_evaluation import run_cocoeval, truth_of_masks
from train_utils.open_data import open_training_data
from train_utils.options import DataSettings

REGIONS, BOXES = Reading(ignore_regions=True), Reading(boxes_without_masks=True)
USUAL = {"boxes", "labels", "masks", "image_id", "area", "iscrowd"}
LAYOUTS = coco_writers.COCO_WRITERS | {n: w for n, w in layout_writers.WRITERS.items() if n not in ONE_CLASS}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def opened(root: Path, reading: Reading, name: str = "train") -> CocoDetection:
    splits = {split.name or "train": split for split in find_layout(root).splits}
    return CocoDetection(open_split_index(splits[name], reading), name)


def settings(root: Path, **given) -> DataSettings:
    made = DataSettings(data_path=str(root), **given)
    made.given = {"data_path", *given}
    return made


# ------------------------------------------------------------------------------------------------------ ignore regions


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_class_ignore_is_regions_in_every_layout(layout, tmp_path, monkeypatch):
    for module in (coco_writers, layout_writers):
        monkeypatch.setattr(module, "CLASSES", ("cat", IGNORE, "traffic light"))
    renamed = {"cat": "cat", "dog": IGNORE, "traffic light": "traffic light"}
    samples = [replace(s, things=[replace(t, class_name=renamed[t.class_name]) for t in s.things]) for s in SAMPLES]
    LAYOUTS[layout](tmp_path / "data", samples)
    dataset, by_name = opened(tmp_path / "data", REGIONS), {s.name: s for s in samples}
    assert set(dataset.class_names.values()) == {"cat", "traffic light"} and dataset.problems.wrong() == []
    names = [path.name for path in map(dataset.image_path, range(len(dataset)))]
    assert {"a.jpg", "b.png"} <= set(names) and "d.jpg" not in names  # only regions
    for i, name in enumerate(names):
        things = by_name[name].things
        target, size = dataset.target(i), by_name[name].size
        expected = np.zeros(size, dtype=bool)
        for thing in things:
            if thing.class_name == IGNORE:
                expected |= thing.mask(size)
        crowds = [t for t in things if t.crowd and layout in (*layout_writers.WITH_CROWDS, *coco_writers.COCO_WRITERS)]
        for thing in crowds:
            expected |= thing.mask(size)
        assert np.array_equal(target["ignore_regions"].union(), expected)
        assert len(target["labels"]) == len([t for t in things if t.class_name != IGNORE]) - len(crowds)
    assert dataset.counts().regions == 3


def add_ignore(content: dict, polygon: list[int], image_id: int, **more) -> None:
    x, y, w, h = polygon
    outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    content["categories"] = [*content["categories"], {"id": 9, "name": "Ignore"}][-4:]
    content["annotations"].append(
        {"id": 900 + image_id, "image_id": image_id, "category_id": 9, "bbox": polygon, "area": w * h, "iscrowd": 0}
        | {"segmentation": outline} | more
    )  # fmt: skip


def test_items_are_as_ever_without_the_options_and_a_class_called_ignore_is_hinted_at(tmp_path, capsys):
    make_coco(tmp_path / "data")
    edit(lambda c: add_ignore(c, [40, 2, 20, 5], 1))(tmp_path)
    edit(lambda c: c["annotations"][0].update(iscrowd=1))(tmp_path)
    dataset, _ = open_training_data(settings(tmp_path / "data"), seed=0)
    assert (
        "'ignore' is a class like any other; --ignore-regions takes its objects as regions" in capsys.readouterr().err
    )
    assert set(dataset[0][1]) == USUAL and "Ignore" in dataset.class_names.values()
    assert len(dataset.target(0)["labels"]) == 2
    dataset, val_set = open_training_data(settings(tmp_path / "data", ignore_regions=True), seed=0)
    printed = capsys.readouterr()
    assert "--ignore-regions" not in printed.err and "; 1 regions of class 'ignore'\n" in printed.out
    assert "Ignore" not in dataset.class_names.values() and set(dataset[0][1]) == USUAL | {"ignore_regions"}
    regions = dataset.target(0)["ignore_regions"].dense()
    assert regions.flatten(1).sum(1).tolist() == [24 * 40, 20 * 5] and val_set.is_whole()


def test_a_region_without_a_mask_is_its_box_and_no_problem(tmp_path):
    make_coco(tmp_path / "data")
    edit(lambda c: add_ignore(c, [40, 2, 20, 5], 1, segmentation=[]))(tmp_path)
    dataset = opened(tmp_path / "data", REGIONS)
    assert dataset.target(0)["ignore_regions"].dense()[0, 2:7, 40:60].all() and not dataset.problems.counts


def test_vocs_difficult_objects_and_void_pixels_are_regions_and_void_is_not_evaluated(tmp_path):
    make_voc(tmp_path / "data")
    folder = tmp_path / "data" / "VOC2012"
    for name in "ae":
        path = folder / "SegmentationObject" / f"{name}.png"
        planes = np.zeros((64, 64), dtype=np.uint8)
        planes[8:48, 4:28], planes[8:48, 32:56], planes[50:60, 3:40] = 1, 2, 255
        save_palette(planes, path)
        xml = folder / "Annotations" / f"{name}.xml"
        xml.write_text(xml.read_text().replace("<name>person</name>", "<name>person</name><difficult>1</difficult>"))
    plain = VOCInstances(tmp_path / "data")
    dataset, val_set = opened(tmp_path / "data", REGIONS), opened(tmp_path / "data", REGIONS, "val")
    assert dataset.class_names == plain.class_names and set(plain[0][1]) == USUAL
    expected = np.zeros((64, 64), dtype=bool)
    expected[8:48, 32:56] = expected[50:60, 3:40] = True
    assert np.array_equal(dataset.target(0)["ignore_regions"].union(), expected)
    assert torch.equal(dataset.target(0)["boxes"], plain.target(0)["boxes"])
    ours, usual = (
        content_of(each)["annotations"] for each in (val_set, VOCInstances(tmp_path / "data", txt_name="val.txt"))
    )
    assert [(a["category_id"], a["bbox"], a["iscrowd"]) for a in ours] == [
        (a["category_id"], a["bbox"], a["iscrowd"]) for a in usual
    ]


def detections(entries: list[tuple[int, int, list[float], float]]) -> list[dict]:
    """Results of boxes (image, category, box, score)."""
    return [{"image_id": i, "category_id": c, "bbox": list(map(float, b)), "score": s} for i, c, b, s in entries]


def test_detections_of_any_class_in_a_region_are_not_counted_as_false(tmp_path):
    make_coco(tmp_path / "data")
    edit(lambda c: add_ignore(c, [0, 50, 64, 14], 5), split="val")(tmp_path)
    edit(lambda c: add_ignore(c, [0, 50, 64, 14], 1))(tmp_path)
    _, val_set = open_training_data(settings(tmp_path / "data", ignore_regions=True), seed=0)
    found = [(i, 1 + k, [4 + 28 * k, 8, 24, 40], 0.5) for i in (5, 6) for k in (0, 1)]
    inside = [(5, 1, [5, 51, 20, 10], 0.9), (5, 2, [30, 52, 20, 11], 0.8)]
    for more, ap in ((inside, 1.0), ([(6, *rest) for _, *rest in inside], None)):
        stats = run_cocoeval(val_set.coco, detections(found + more), "bbox").stats
        assert stats[0] == pytest.approx(1.0) if ap else stats[0] < 0.7
    ids = [a["id"] for a in content_of(val_set)["annotations"]]
    assert len(ids) == len(set(ids)) == 4 + len(val_set.class_names)


# ---------------------------------------------------------------------------------------------- objects without a mask


def bare_coco(root: Path) -> None:
    make_coco(root)
    for split, image_id in (("train", 1), ("val", 5)):
        edit(lambda c, i=image_id: [a.update(segmentation=[]) for a in c["annotations"] if a["id"] == 10 * i], split)(
            root.parent
        )


def bare_yolo(root: Path) -> None:
    layout_writers.write_yolo(root, SAMPLES)
    path = root / "labels" / "train" / "a.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "1 0.86875 0.18333333 0.2375 0.3"]))  # the dog


def bare_voc(root: Path) -> None:
    make_voc(root)
    planes = np.zeros((64, 64), dtype=np.uint8)
    planes[8:48, 32:56] = 2
    save_palette(planes, root / "VOC2012" / "SegmentationObject" / "a.png")
    (root / "VOC2012" / "SegmentationObject" / "b.png").unlink()


def bare_own_voc(root: Path) -> None:
    layout_writers.write_own_voc(root, SAMPLES)
    for kind in ("SegmentationObject", "SegmentationClass"):
        (root / "VOCdevkit" / "VOC2012" / kind / "a.png").unlink(missing_ok=True)


# Layout -> its writer; boxes and flags of the first image; objects without a mask.
BARE = {
    "COCO": (bare_coco, [[4, 8, 28, 48], [32, 8, 56, 48]], [False, True], 1),
    "YOLO": (bare_yolo, [[10, 5, 50, 45], [60, 2, 79, 20]], [True, False], 1),
    "VOC": (bare_voc, [[4, 8, 28, 48], [32, 8, 56, 48]], [False, True], 3),
    "VOC-like": (bare_own_voc, [[10, 5, 50, 45], [60, 2, 79, 20]], [False, False], 2),
}


@pytest.mark.parametrize("layout", BARE)
def test_objects_with_a_box_alone_are_carried_by_every_layout_that_has_such(layout, tmp_path):
    write, boxes, flags, number = BARE[layout]
    write(tmp_path / "data")
    dataset = opened(tmp_path / "data", BOXES)
    target = dataset.target(0)
    assert dataset.problems.counts == {} and dataset.counts().without_mask == number
    order = target["boxes"][:, 0].argsort() if layout == "VOC-like" else torch.arange(2)
    torch.testing.assert_close(target["boxes"][order], torch.tensor(boxes).float(), atol=1e-3, rtol=0)
    assert target["has_mask"].tolist() == flags and target["iscrowd"].tolist() == [0, 0]
    assert (target["masks"].areas() > 0).tolist() == flags and (target["area"] > 0).all()


def test_they_count_in_evaluation_for_boxes_and_are_ignored_for_masks(tmp_path):
    bare_coco(tmp_path / "data")
    given = settings(tmp_path / "data")
    _, usual = open_training_data(given, seed=0)
    given.boxes_without_masks = True
    _, val_set = open_training_data(given, seed=0)
    content = content_of(val_set)
    assert content["without_mask"] == [50] and content_of(usual)["without_mask"] == []
    boxes = [(i, 1 + k, [4 + 28 * k, 8, 24, 40], 0.5) for i in (5, 6) for k in (0, 1)]
    codes = {k: a["segmentation"] for k, a in zip((51, 60, 61), content["annotations"][1:])}
    for missing in (False, True):  # the object without a mask is not found
        chosen = boxes[1:] if missing else boxes
        masks = [
            {"image_id": i, "category_id": 1 + k, "score": 0.5, "segmentation": codes[10 * i + k]}
            for i, k in ((5, 1), (6, 0), (6, 1))
        ]
        results = {"bbox": detections(chosen), "segm": masks}
        of_boxes = run_cocoeval(val_set.coco, results["bbox"], "bbox").stats
        of_masks = run_cocoeval(truth_of_masks(val_set.coco), results["segm"], "segm").stats
        assert (of_boxes[0] == pytest.approx(1.0)) is not missing and of_masks[0] == pytest.approx(1.0)
        assert run_cocoeval(usual.coco, results["bbox"], "bbox").stats[0] == pytest.approx(1.0)
        for kind, ap in (("bbox", of_boxes[0]), ("segm", of_masks[0])):
            data = make_eval_data(content, {kind: results[kind]} | ({"segm": masks} if kind == "segm" else {}), {})
            assert np.nanmean([c.ap for c in analyse(data, kind).classes]) == pytest.approx(ap)


def test_a_dataset_of_boxes_alone_is_trained_on_only_with_the_option(tmp_path):
    make_coco(tmp_path / "data")
    for split in ("train", "val"):
        edit(lambda c: [a.pop("segmentation") for a in c["annotations"]], split)(tmp_path)
    with pytest.raises(InputError, match=r"no image with a usable object .* 8 without a mask"):
        open_training_data(settings(tmp_path / "data"), seed=0)
    dataset, _ = open_training_data(settings(tmp_path / "data", boxes_without_masks=True), seed=0)
    assert len(dataset) == 4 and not dataset[0][1]["has_mask"].any()


# ------------------------------------------------------------------------------------------------------- augmentations


def item_of(masks: InstanceMasks, regions: Tensor, **more) -> tuple[Tensor, dict]:
    """An image whose first channel shows the regions, [R, H, W]."""
    image = torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8)
    image[0] = regions.any(dim=0) * 255
    count = len(masks)
    target = {"boxes": masks.extents(), "labels": torch.arange(1, count + 1), "masks": masks, "image_id": 7}
    target |= {"area": masks.areas().float(), "iscrowd": torch.zeros(count, dtype=torch.int64)}
    return image, target | {"ignore_regions": InstanceMasks.from_dense(regions)} | more


def test_regions_go_with_the_pixels_through_every_augmentation():
    steps = (transforms.ScaleJitter(40), transforms.RandomHorizontalFlip(), transforms.RandomVerticalFlip())
    for seed in range(12):
        torch.manual_seed(seed)
        image, target = transforms.Compose(steps)(*item_of(InstanceMasks.from_dense(blobs(4)), blobs(3)))
        assert np.array_equal(target["ignore_regions"].union(), image[0].numpy() > 0)
        view, regions = target["view"], target["ignore_regions"]
        framed = transforms.in_frame(image, target)[1]["ignore_regions"]
        shown = F.interpolate(torch.from_numpy(regions.union())[None, None].byte(), (view.height, view.width))[0, 0]
        assert np.array_equal(framed.union()[: view.height, : view.width], shown.numpy() > 0)
        assert framed.union().sum() == (shown > 0).sum()


def test_pasted_objects_uncover_regions_and_those_without_a_mask_are_not_pasted():
    flags = torch.tensor([True, False, True, False, False])
    jitter = transforms.ScaleJitter(40, (1.0, 1.0))
    torch.manual_seed(1)
    items = [jitter(*item_of(InstanceMasks.from_dense(blobs(5)), blobs(3), has_mask=flags)) for _ in range(2)]
    framed = [transforms.in_frame(*item) for item in items]
    _, targets = transforms.CopyPaste()(items)
    for (_, before), (_, source), target in zip(framed, framed[::-1], targets):
        own = len(target["labels"]) - sum(label in (1, 3) for label in target["labels"][-2:].tolist())
        pasted = target["masks"][target["has_mask"] & (torch.arange(len(target["labels"])) >= own)]
        assert 0 < len(pasted) <= int(source["has_mask"].sum())
        assert target["has_mask"][own:].all() and set(target["labels"][own:].tolist()) <= {1, 3}
        expected = before["ignore_regions"].union() & ~pasted.union()
        assert np.array_equal(target["ignore_regions"].union(), expected)


@pytest.mark.parametrize("make", [lambda: transforms.ScaleJitter(40), transforms.RandomHorizontalFlip])
def test_boxes_alone_are_augmented_as_objects_that_fill_their_box(make: Callable):
    corners = torch.stack((torch.randint(0, WIDTH - 6, (30,)), torch.randint(0, HEIGHT - 6, (30,))), dim=1)
    boxes = torch.cat((corners, corners + torch.randint(1, 6, (30, 2))), dim=1)
    planes = torch.zeros(30, HEIGHT, WIDTH, dtype=torch.uint8)
    for plane, (x1, y1, x2, y2) in zip(planes, boxes.tolist()):
        plane[y1:y2, x1:x2] = 1
    seen = 0
    for seed in range(10):
        results = []
        for has_mask in (True, False):
            flags = torch.full((30,), has_mask)
            image, target = item_of(InstanceMasks.from_dense(planes * has_mask), planes[:1], has_mask=flags)
            target |= {"boxes": boxes.float(), "area": planes.flatten(1).sum(1).float()}
            torch.manual_seed(seed)
            results.append(make()(image, target)[1])
        assert all(torch.equal(results[0][key], results[1][key]) for key in ("boxes", "labels", "area"))
        seen += len(results[0]["labels"])
    assert seen > 60
