"""torchvision's published file under its own name, in validation.py and predict.py: nothing to say but where it is.

The file is made of random numbers in the style of maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth; the reference is
torchvision's network as `maskrcnn_resnet50_fpn(weights=...)` builds it for that file.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from tests.helpers.commands import run, succeeded
from tests.helpers.official_metrics import official_evaluation
from tests.helpers.published_weights import SIZES, in_older_style, published_v1
from train_utils.classes import COCO_NAMES

pytestmark = pytest.mark.slow

PHOTOS = 2
OPTIONS = ["--device", "cpu", "--weights-path", "maskrcnn_resnet50_fpn_coco.pth"]
OPTIONS += ["--min-size", str(SIZES["min_size"]), "--max-size", str(SIZES["max_size"])]


@pytest.fixture(scope="module")
def reference(data_folder: Path) -> dict[str, dict[str, Tensor]]:
    """What torchvision's network finds in some real photos, by file name."""
    found = {}
    for path in sorted((data_folder / "coco_tiny" / "val2017").iterdir())[:PHOTOS]:
        with Image.open(path) as picture:
            image = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1) / 255
        with torch.no_grad():
            (found[path.name],) = published_v1().eval()([image])
    return found


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, data_folder: Path, reference) -> Path:
    """Where a user would stand: the file, and photos in COCO's layout whose objects are some of what is found there."""
    folder = tmp_path_factory.mktemp("published")
    torch.save(in_older_style(published_v1().state_dict()), folder / "maskrcnn_resnet50_fpn_coco.pth")
    for name in ("annotations", "val2017"):
        (folder / "coco" / name).mkdir(parents=True)
    names = json.loads(COCO_NAMES.read_text())
    images, objects = [], []
    for name, found in reference.items():
        shutil.copy(data_folder / "coco_tiny" / "val2017" / name, folder / "coco" / "val2017")
        height, width = found["masks"].shape[-2:]
        images.append({"id": int(Path(name).stem), "file_name": name, "height": height, "width": width})
        results = in_coco_format(int(Path(name).stem), found)
        objects += [d for d in results if str(d["category_id"]) in names and fills_its_box(d)][::3]
    for number, thing in enumerate(objects, start=1):
        del thing["score"]
        thing |= {"id": number, "area": int(coco_mask.area(thing["segmentation"])), "iscrowd": 0}
    categories = [{"id": int(label), "name": name} for label, name in names.items()]
    content = {"images": images, "annotations": objects, "categories": categories}
    (folder / "coco" / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return folder


def in_coco_format(image_id: int, found: dict[str, Tensor]) -> list[dict]:
    """Detections of torchvision's in COCO's results format, by pycocotools alone."""
    columns = [found[key].tolist() for key in ("labels", "scores", "boxes")]
    codes = [coco_mask.encode(np.asfortranarray(mask[0] > 0.5)) for mask in found["masks"].numpy()]
    return [
        {
            "image_id": image_id,
            "category_id": label,
            "score": score,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
        }
        for label, score, (x1, y1, x2, y2), code in zip(*columns, codes)
    ]


def fills_its_box(detection: dict) -> bool:
    return coco_mask.area(detection["segmentation"]) > 0.25 * detection["bbox"][2] * detection["bbox"][3]


def in_order_of(theirs: list[dict], ours: list[dict]) -> list[dict]:
    """Our detection for each of theirs: of the same class, with the same score and box. Equal scores have no order."""
    left, ordered = list(ours), []
    for one in theirs:
        equal = (
            k
            for k, d in enumerate(left)
            if d["category_id"] == one["category_id"]
            and abs(d["score"] - one["score"]) <= 1e-4
            and np.allclose(d["bbox"], one["bbox"], rtol=0, atol=1e-2)
        )
        k = next(equal, None)
        assert k is not None, one
        ordered.append(left.pop(k))
    return ordered


def test_predict_finds_what_torchvision_finds(lab, reference):
    arguments = [*OPTIONS, "--img-path", "coco/val2017", "--box-thresh", "0", "--save-json"]
    said = succeeded(run(lab, "predict.py", *arguments)).out
    detections = json.loads((lab / "predictions" / "predictions.json").read_text())
    names = json.loads(COCO_NAMES.read_text())
    for file_name, found in reference.items():
        image_id = int(Path(file_name).stem)
        ours = [d for d in detections if d["image_id"] == image_id]
        theirs = [d for d in in_coco_format(image_id, found) if str(d["category_id"]) in names]  # COCO's ids have gaps
        assert len(ours) == len(theirs) >= 20
        same = sum(a["segmentation"] == b["segmentation"] for a, b in zip(in_order_of(theirs, ours), theirs))
        assert same >= 0.9 * len(ours)  # rounding moves a pixel of the outline here and there
    assert all(names[str(d["category_id"])] in said for d in detections)


@pytest.fixture(scope="module")
def recorded(lab: Path) -> dict[str, str]:
    """What validation.py records, by IoU type."""
    succeeded(run(lab, "validation.py", *OPTIONS, "--data-path", "coco", "--workers", "0"))
    boxes, masks = (lab / "record_mAP.txt").read_text().split("\nmasks\n")
    return {"bbox": boxes, "segm": masks}


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_validation_gives_the_metrics_of_torchvisions_detections(lab, reference, recorded, iou_type):
    table = recorded[iou_type]
    lines = map(str.split, table.splitlines())
    figures = [float(words[1]) for words in lines if words[0] in ("AP", "AP50", "AP75") and len(words) == 2]
    results = [d for name, found in reference.items() for d in in_coco_format(int(Path(name).stem), found)]
    shape = "bbox" if iou_type == "bbox" else "segmentation"
    results = [{k: d[k] for k in ("image_id", "category_id", "score", shape)} for d in results]
    truth = lab / "coco" / "annotations" / "instances_val2017.json"
    expected = list(official_evaluation(truth, results, iou_type).stats[:3])
    assert 0.1 < expected[0] < 0.9
    assert figures[:3] == pytest.approx(expected, abs=2e-4)
