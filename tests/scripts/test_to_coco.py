"""tools/to_coco.py: what it writes is a COCO file that pycocotools and the project's own reader open."""

import base64
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from dataset_files.coco_index import open_index
from my_dataset_coco import CocoDetection
from tests.helpers.commands import run
from tests.helpers.layout_writers import SAMPLES, SPLIT, WRITERS
from tests.helpers.project import ROOT
from train_utils.errors import InputError

# pycocotools' decoder and numpy 2 do not yet agree on what __array__ takes.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def load_tool() -> ModuleType:
    """The script as a module: a process of its own would spend most of its time on imports."""
    spec = importlib.util.spec_from_file_location("to_coco", ROOT / "tools" / "to_coco.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def to_coco(source: Path, output: Path, class_attribute: str | None = None, skip_bad: bool = False) -> None:
    load_tool().main(source, output, class_attribute, skip_bad)


@pytest.mark.parametrize("layout", ["labelme", "YOLO by Roboflow", "VIA 2", "CVAT segmentation mask", "Penn-Fudan"])
def test_written_files_are_read_by_pycocotools(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    WRITERS[layout](tmp_path / "data", SAMPLES)
    to_coco(tmp_path / "data", tmp_path / "out.json")
    printed = capsys.readouterr().out
    names = ["out_train.json", "out_val.json"] if layout in SPLIT else ["out.json"]
    assert sorted(path.name for path in tmp_path.glob("*.json")) == names
    folder = Path(printed.splitlines()[0].rpartition("--image-folder ")[2])
    areas = []
    for name in names:
        coco = COCO(str(tmp_path / name))
        for annotation in coco.dataset["annotations"]:
            areas.append(coco.annToMask(annotation).sum())
            assert (folder / coco.imgs[annotation["image_id"]]["file_name"]).is_file()
    assert sorted(areas) == sorted(thing.mask(s.size).sum() for s in SAMPLES for thing in s.things)


def test_written_file_gives_the_projects_dataset_the_same_targets(tmp_path: Path) -> None:
    WRITERS["labelme"](tmp_path / "data", SAMPLES)
    to_coco(tmp_path / "data", tmp_path / "out.json")
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    shutil.copytree(tmp_path / "data", root / "val2017")
    (tmp_path / "out.json").rename(root / "annotations" / "instances_val2017.json")
    dataset = CocoDetection(root, "val")
    by_name = {sample.name: sample for sample in SAMPLES}
    for i, name in enumerate(dataset.image_names()):
        target, sample = dataset[i][1], by_name[name]
        expected = sorted((thing.box(), thing.mask(sample.size).tolist()) for thing in sample.things)
        boxes = target["boxes"].numpy()
        found = [[*box[:2], *(box[2:] - box[:2])] for box in boxes]
        masks = target["masks"].dense().numpy().astype(bool).tolist()
        assert [mask for _, mask in expected] == [mask for _, mask in sorted(zip([list(b) for b in found], masks))]
        assert np.allclose(sorted(found), [box for box, _ in expected], atol=0.01) or not found


def test_bad_input_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "none").mkdir()
    WRITERS["labelme"](tmp_path / "labelme", SAMPLES)
    (tmp_path / "labelme" / "a.json").write_text("{")
    (tmp_path / "via").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "via" / "a.png")
    regions = [{"shape_attributes": {"name": "rect"}, "region_attributes": {"a": "1", "b": "2"}}]
    entries = {"a.png1": {"filename": "a.png", "size": 1, "regions": regions}}
    (tmp_path / "via" / "v.json").write_text(json.dumps(entries))
    expected = {"none": "labelme", "labelme": "a.json", "via": "--class-attribute a", "no": "not found"}
    for folder, said in expected.items():
        with pytest.raises(InputError, match=said) as raised:
            to_coco(tmp_path / folder, tmp_path / "out.json")
        assert folder in str(raised.value) and "\n" not in str(raised.value)
        assert not (tmp_path / "out.json").exists()
    with pytest.raises(InputError, match="is for VIA's files"):
        to_coco(tmp_path / "labelme", tmp_path / "out.json", class_attribute="a")
    to_coco(tmp_path / "labelme", tmp_path / "out.json", skip_bad=True)
    captured = capsys.readouterr()
    assert "a.json" in captured.err and "5 images" in captured.out


def test_skip_bad_leaves_the_invalid_annotations_of_a_coco_file_out(tmp_path: Path, capsys) -> None:
    image = {"id": 1, "file_name": "a.png", "height": 20, "width": 20}
    good = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 8], "area": 64, "iscrowd": 0, "note": "kept"}
    good["segmentation"] = [[1, 1, 9, 1, 9, 9, 1, 9]]
    bad = [good | {"id": 2, "image_id": 9}, good | {"id": 3, "category_id": 7}]
    content = {"images": [image], "annotations": [good, *bad], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "given.json").write_text(json.dumps(content))
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="--skip-bad"):
        to_coco(tmp_path / "given.json", tmp_path / "out.json")
    to_coco(tmp_path / "given.json", tmp_path / "out.json", skip_bad=True)
    assert capsys.readouterr().err.count("warning: ") == 2
    assert json.loads((tmp_path / "out.json").read_text())["annotations"] == [good]
    assert not open_index(tmp_path / "out.json").problems.wrong()


def test_a_source_is_never_overwritten(tmp_path: Path) -> None:
    WRITERS["labelme"](tmp_path / "data", SAMPLES)
    file = next((tmp_path / "data").glob("*.json"))
    before = file.read_bytes()
    with pytest.raises(InputError, match="would be overwritten"):
        to_coco(tmp_path / "data", file)
    to_coco(tmp_path / "data", tmp_path / "out.json")
    written = (tmp_path / "out.json").read_bytes()
    with pytest.raises(InputError, match="would be overwritten"):
        to_coco(tmp_path / "out.json", tmp_path / "out.json")
    assert file.read_bytes() == before and (tmp_path / "out.json").read_bytes() == written


def test_the_command_itself(tmp_path: Path) -> None:
    WRITERS["VIA 1"](tmp_path / "data", SAMPLES)
    outcome = run(tmp_path, "tools/to_coco.py", "data", "--class-attribute", "size", "-o", "out.json")
    assert outcome.code == 2 and "there are: class" in outcome.err and outcome.err.count("\n") == 1


def test_images_that_exist_only_inside_labelmes_files_are_written_beside_links_to_the_others(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out_images"
    WRITERS["labelme"](data, SAMPLES)
    inside = sorted(data.glob("*.json"))[0]
    content = json.loads(inside.read_text())
    image = data / content["imagePath"]
    stored = image.read_bytes()
    inside.write_text(json.dumps(content | {"imageData": base64.b64encode(stored).decode()}))
    image.unlink()
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    outcome = run(tmp_path, "tools/to_coco.py", "data", "-o", "out.json")
    assert outcome.code == 0 and outcome.out.rstrip().endswith("--image-folder out_images"), outcome.err
    names = {image["file_name"] for image in json.loads((tmp_path / "out.json").read_text())["images"]}
    assert len(names) == len(SAMPLES) and all((out / name).is_file() for name in names)
    (written,) = (name for name in names if not (data / name).exists())
    assert (out / written).read_bytes() == stored
    assert all(os.path.samefile(out / name, data / name) for name in names - {written})
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before
    (out / written).write_bytes(b"another image")
    outcome = run(tmp_path, "tools/to_coco.py", "data", "-o", "out.json")
    assert outcome.code == 2 and f"{written}: exists, and is another image" in outcome.err
    assert (out / written).read_bytes() == b"another image"


@pytest.mark.slow
def test_help_into_a_reader_that_has_gone_gives_no_traceback() -> None:
    for tool in ("predict_onnx", "to_coco"):
        command = [sys.executable, str(ROOT / "tools" / f"{tool}.py"), "--help"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            process.stdout.close()
            assert process.stderr.read() == "" and process.wait() in (0, 141), tool
