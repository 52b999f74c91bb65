"""No file of the user is lost: originals behind links and of equal stems, and a long prediction's tables."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from predict import Predictor
from prediction.options import SAVE_FORMATS
from prediction.prediction import Prediction
from prediction.sources import find_sources
from tests.helpers.commands import assert_refused, run, succeeded
from tests.helpers.thin_weights import noise_image, thin_networks, write_thin_weights
from train_utils.errors import InputError

WORDS = ["--device", "cpu", "--weights-path", "thin.pth", "--box-thresh", "0.3"]
QUARTER_TURN = 6  # EXIF


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("weights")
    with thin_networks():
        write_thin_weights(folder / "thin.pth")
        yield folder / "thin.pth"


@pytest.fixture
def lab(weights: Path, tmp_path: Path) -> Path:
    (tmp_path / "thin.pth").symlink_to(weights)
    return tmp_path


def photo(path: Path, number: int, orientation: int = 1) -> bytes:
    """Write a noise image, and return the file's content."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    noise_image(number, (64, 48)).save(path, exif=exif)
    return path.read_bytes()


def test_another_photo_of_the_same_name_leaves_the_first_original_alone(lab: Path) -> None:
    first, second = photo(lab / "a" / "x.jpg", 1), photo(lab / "b" / "x.jpg", 2, QUARTER_TURN)
    succeeded(run(lab, "predict.py", *WORDS, "--img-path", "a", "--save", "coco", "labelme"))
    assert os.path.samefile(lab / "a" / "x.jpg", lab / "predictions" / "coco" / "images" / "x.jpg")
    (lab / "predictions" / "labelme" / "x.json").unlink()
    succeeded(run(lab, "predict.py", *WORDS, "--img-path", "b", "--save", "coco", "labelme"))
    assert (lab / "a" / "x.jpg").read_bytes() == first and (lab / "b" / "x.jpg").read_bytes() == second
    with Image.open(lab / "predictions" / "coco" / "images" / "x.jpg") as placed:
        assert placed.size == (48, 64)  # the second one, upright


def test_results_that_are_links_to_photos_are_replaced_and_not_written_through(lab: Path) -> None:
    content = photo(lab / "a" / "x.jpg", 1)
    (lab / "predictions").mkdir()
    for name in ("x.png", "predictions.json", "predictions.csv"):
        os.link(lab / "a" / "x.jpg", lab / "predictions" / name)
    succeeded(run(lab, "predict.py", *WORDS, "--img-path", "a", "--save", "json", "csv"))
    assert (lab / "a" / "x.jpg").read_bytes() == content
    json.loads((lab / "predictions" / "predictions.json").read_text())


@pytest.mark.parametrize(
    "words, named",
    [
        (["--img-path", "photos", "--output-dir", "photos"], "x.png: would be overwritten"),
        (["--img-path", "photos/x.jpg", "photos/x.png", "--output-dir", "linked"], "x.png: would be overwritten"),
        (["--img-path", "out/coco/images", "--output-dir", "out", "--save", "coco"], "y.jpg: lies in out/coco/"),
        (["--img-path", "photos", "--annotation-file", "out/predictions.json", "--output-dir", "out", "--save", "json"],
         "predictions.json: would be overwritten"),
    ],
)  # fmt: skip
def test_no_input_is_overwritten_by_another_inputs_result(lab: Path, words: list[str], named: str) -> None:
    for number, name in enumerate(("photos/x.jpg", "photos/x.png", "out/coco/images/y.jpg")):
        photo(lab / name, number)
    (lab / "linked").symlink_to("photos")
    images = [{"id": k, "file_name": f"x.{s}", "height": 48, "width": 64} for k, s in ((1, "jpg"), (2, "png"))]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (lab / "out" / "predictions.json").write_text(json.dumps(content))
    before = {path: path.read_bytes() for path in lab.rglob("*.*") if path.is_file()}
    assert_refused(run(lab, "predict.py", *WORDS, *words), named)
    assert {path: path.read_bytes() for path in lab.rglob("*.*") if path.is_file()} == before


@pytest.mark.parametrize(
    "taken, words, named",
    [
        ("out/x.png/", ["--save", "json"], "out/x.png: exists, and is not a regular file"),
        ("out/masks/x.png/", ["--save", "masks"], "out/masks/x.png: exists, and is not a regular file"),
        ("out/labelme/x.json/", ["--save", "labelme"], "x.json"),
        ("out/predictions.csv/", ["--save", "csv"], "out/predictions.csv: exists, and is not a regular file"),
        ("out/crops", ["--save", "crops"], "out/crops: exists, and is not a folder"),
        ("out/day", [], "out/day: exists, and is not a folder"),
        ("out", [], "out: exists, and is not a folder"),
    ],
)
def test_an_output_whose_place_is_taken_is_refused_before_anything_is_written(
    lab: Path, taken: str, words: list[str], named: str
) -> None:
    photo(lab / "photos" / "a.jpg", 1)
    photo(lab / "photos" / "day" / "b.jpg", 2)
    photo(lab / "photos" / "x.jpg", 3)
    if taken.endswith("/"):
        (lab / taken).mkdir(parents=True)
    else:
        (lab / taken).parent.mkdir(parents=True, exist_ok=True)
        (lab / taken).write_text("the user's")
    before = sorted(lab.rglob("*"))
    assert_refused(run(lab, "predict.py", *WORDS, "--img-path", "photos", "--output-dir", "out", *words), named)
    assert sorted(lab.rglob("*")) == before


def test_folders_named_like_outputs_and_the_longest_names_are_no_obstacle(lab: Path) -> None:
    long = ["n" * 251 + ".jpg", "\u6f22" * 83 + ".webp"]
    names = ["x.jpg", "x.png/y.jpg", "x.json/y.jpg", "labels.txt/y.jpg", "predictions.json/y.jpg", *long]
    for number, name in enumerate(names):
        photo(lab / "photos" / name, number)
    words = [*WORDS[:-1], "0.7", "--img-path", "photos", "--save", *SAVE_FORMATS]
    succeeded(run(lab, "predict.py", *words))
    out = lab / "predictions"
    json.loads((out / "predictions.json").read_text())
    assert len(json.loads((out / "coco" / "annotations.json").read_text())["images"]) == len(names)
    for folder, suffixes in (("masks", [".png"]), ("coco/images", [".jpg", ".webp"]), ("labelme", [".json"])):
        files = [path for path in (out / folder).rglob("*") if path.is_file() and path.suffix in suffixes]
        assert len(files) == len(names)


def test_an_empty_path_is_not_the_current_folder(lab: Path) -> None:
    photo(lab / "a.png", 1)
    for words in (["--img-path", ""], ["--img-path", "a.png", ""], ["--img-path", "a.png", "--output-dir", ""]):
        outcome = run(lab, "predict.py", *WORDS, *words)
        assert outcome.code == 2 and "the value is empty" in outcome.err and not (lab / "predictions").exists()
    with pytest.raises(InputError, match="'': no such file"):
        find_sources([""], lab / "predictions")


def test_classes_that_were_added_to_labelmes_list_by_hand_stay(lab: Path) -> None:
    photo(lab / "x.png", 1)
    (lab / "predictions" / "labelme").mkdir(parents=True)
    (lab / "predictions" / "labelme" / "labels.txt").write_text("pear\nfig\n")
    succeeded(run(lab, "predict.py", *WORDS, "--img-path", "x.png", "--save", "labelme"))
    labels = (lab / "predictions" / "labelme" / "labels.txt").read_text().split("\n")
    assert labels == ["pear", "fig", "apple", "water melon", ""]


def test_an_error_of_the_program_in_one_image_leaves_the_tables_of_the_others(lab: Path, monkeypatch) -> None:
    for number in range(4):
        photo(lab / "photos" / f"{number}.png", number)
    draw, calls = Prediction.draw, []

    def failing(self: Prediction) -> Image.Image:
        calls.append(self)
        if len(calls) == 3:
            raise ZeroDivisionError("in the third image")
        return draw(self)

    monkeypatch.setattr(Prediction, "draw", failing)
    monkeypatch.setattr("prediction.pipeline.THREADS", 1)
    outcome = run(lab, "predict.py", *WORDS, "--img-path", "photos", "--save", "json", "csv", "-b", "1")
    assert outcome.code == 1 and "in the third image" in outcome.err
    entries = json.loads((lab / "predictions" / "predictions.json").read_text())
    assert {entry["file_name"] for entry in entries} >= {"0.png", "1.png"}
    assert "1.png" in (lab / "predictions" / "predictions.csv").read_text()


def test_images_of_another_size_than_annotated_are_named(lab: Path) -> None:
    for number, name in enumerate(("x.png", "y.png", "z.png")):
        photo(lab / name, number)
    images = [{"id": k, "file_name": f"{n}.png", "height": 48 * k, "width": 64} for k, n in enumerate("xyz", 1)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (lab / "known.json").write_text(json.dumps(content))
    words = [*WORDS, "--img-path", "x.png", "y.png", "z.png", "--save", "json", "--annotation-file", "known.json"]
    outcome = succeeded(run(lab, "predict.py", *words))
    assert outcome.said.startswith("warning: 2 images have another size than in --annotation-file")
    assert outcome.said.endswith("y.png")


def test_older_results_stay_if_no_image_can_be_read(lab: Path) -> None:
    photo(lab / "photos" / "a.png", 1)
    words = [*WORDS, "--img-path", "photos", "--save", "json", "csv", "coco", "masks", "crops"]
    succeeded(run(lab, "predict.py", *words))
    before = {path: path.read_bytes() for path in (lab / "predictions").rglob("*") if path.is_file()}
    assert before
    (lab / "photos" / "a.png").unlink()  # not written through the hard link in coco/images
    (lab / "photos" / "a.png").write_bytes(b"broken")
    assert_refused(run(lab, "predict.py", *words), "1 of 1 files could not be read", "a.png")
    assert {path: path.read_bytes() for path in (lab / "predictions").rglob("*") if path.is_file()} == before
    assert_refused(run(lab, "predict.py", *words, "--output-dir", "new"), "1 of 1 files could not be read")
    assert not (lab / "new").exists()


def test_names_that_are_no_utf_8_are_predicted_and_saved(lab: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    photo(lab / "photos" / name, 1)
    formats = ["json", "csv", "coco", "labelme", "masks", "crops"]
    succeeded(run(lab, "predict.py", *WORDS, "--img-path", "photos", "--save", *formats))
    assert (lab / "predictions" / name).is_file()
    assert "caf\\udce9.png" in (lab / "predictions" / "predictions.csv").read_text()
    (entry, *_) = json.loads((lab / "predictions" / "predictions.json").read_text())
    assert entry["file_name"] == name
    json.loads((lab / "predictions" / "labelme" / os.fsdecode(b"caf\xe9.json")).read_text())


def test_a_cell_that_a_spreadsheet_would_compute_is_guarded(lab: Path) -> None:
    photo(lab / "photos" / "=HYPERLINK(A1).png", 1)
    photo(lab / "photos" / "-1.5.png", 2)
    succeeded(run(lab, "predict.py", *WORDS, "--img-path", "photos", "--save", "csv"))
    with open(lab / "predictions" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows} == {"'=HYPERLINK(A1).png", "'-1.5.png"}
    assert all(float(row["x1"]) < float(row["x2"]) for row in rows)


def test_a_line_break_in_a_class_name_is_no_second_class(lab: Path) -> None:
    write_thin_weights(lab / "broken.pth", {1: "a\nb", 2: "c", 3: "d"})
    photo(lab / "x.png", 1)
    words = ["--device", "cpu", "--weights-path", "broken.pth", "--img-path", "x.png", "--save", "labelme"]
    outcome = succeeded(run(lab, "predict.py", *words, "--box-thresh", "0.05"))
    labels = (lab / "predictions" / "labelme" / "labels.txt").read_text().splitlines()
    assert labels == ["a b", "c", "d"]
    shapes = json.loads((lab / "predictions" / "labelme" / "x.json").read_text())["shapes"]
    assert {shape["label"] for shape in shapes} <= set(labels)
    assert len(outcome.out.splitlines()) == 2


def test_further_pages_of_an_image_are_named(lab: Path) -> None:
    pages = [noise_image(k, (64, 48)) for k in range(3)]
    pages[0].save(lab / "scan.tif", save_all=True, append_images=pages[1:])
    pages[0].save(lab / "one.tif")
    outcome = succeeded(run(lab, "predict.py", *WORDS, "--img-path", "scan.tif", "one.tif"))
    assert outcome.said == "warning: scan.tif: has 3 pages or frames; only the first one is read"
    predictor = Predictor(lab / "thin.pth", device="cpu")
    assert np.array_equal(predictor(lab / "scan.tif").image, pages[0])


@pytest.mark.filterwarnings("error::UserWarning")
def test_palettes_and_arrays_that_cannot_be_written_to_give_no_warnings(lab: Path) -> None:
    palette = noise_image(1, (64, 48)).quantize(16)
    palette.save(lab / "palette.png", transparency=bytes(range(16)))
    Image.new("RGB", (1, 1)).save(lab / "dot.png")
    predictor = Predictor(lab / "thin.pth", device="cpu")
    assert len(predictor([lab / "palette.png", lab / "dot.png"])) == 2
    succeeded(outcome := run(lab, "predict.py", *WORDS, "--img-path", "palette.png", "dot.png"))
    assert outcome.said == ""


def test_what_is_no_regular_file_is_passed_over(lab: Path) -> None:
    photo(lab / "photos" / "a.png", 1)
    os.mkfifo(lab / "photos" / "b.png")
    (lab / "photos" / "c.png").symlink_to("/dev/zero")
    outcome = run(lab, "predict.py", *WORDS, "--img-path", "photos")
    assert_refused(outcome, "2 of 3 files could not be read", "b.png")
    assert "b.png: not a regular file" in outcome.out and "c.png: not a regular file" in outcome.out
    assert_refused(run(lab, "predict.py", *WORDS, "--img-path", "photos/b.png"), "neither a file nor a folder")
