"""Which files are predicted and how their outputs are called: files, folders, patterns, equal names, image ids."""

import json
import os
from pathlib import Path

import pytest

from prediction.sources import Source, find_sources, unique_names, with_ids
from train_utils.errors import InputError

FILES = ("b.jpg", "a.PNG", "notes.txt", "clip.mp4", "day 1/b.jpg", "day 1/deep/c.webp", ".hidden/x.jpg", "out/b.png")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in FILES:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ids_of(sources: list[Source], annotation_file: str | None = None) -> list[int]:
    return [image.id for image in with_ids(sources, annotation_file)]


def found(*given: str, output: str = "photos/out") -> list[tuple[str, str]]:
    return [(source.file_name, source.name) for source in find_sources(given, Path(output))]


def test_a_folder_gives_its_images_and_those_of_its_sub_folders(folder: Path) -> None:
    expected = ["a.PNG", "b.jpg", "day 1/b.jpg", "day 1/deep/c.webp"]
    assert found("photos") == [(name, os.path.splitext(name)[0]) for name in expected]
    assert [source.path for source in find_sources(["photos"], Path("photos/out"))] == [
        Path("photos") / name for name in expected
    ]


def test_the_output_folder_is_passed_over_unless_it_is_given_itself(folder: Path) -> None:
    assert len(found("photos", output="elsewhere")) == 5
    assert found("photos/out") == found("photos/out/") == [("b.png", "b")]


def test_files_are_taken_as_they_are_given(folder: Path) -> None:
    sources = find_sources(["photos/notes.txt", "photos/clip.mp4", "photos/day 1/b.jpg"], Path("out"))
    assert [source.file_name for source in sources] == ["notes.txt", "clip.mp4", "b.jpg"]
    assert [source.is_video() for source in sources] == [False, True, False]


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("photos/*.jpg", ["b.jpg"]),
        ("photos/**/*.jpg", ["b.jpg", "day 1/b.jpg"]),
        ("photos/*.*", ["a.PNG", "b.jpg", "clip.mp4"]),
        ("photos/d*", ["day 1/b.jpg", "day 1/deep/c.webp"]),
        ("photos/**", ["a.PNG", "b.jpg", "clip.mp4", "day 1/b.jpg", "day 1/deep/c.webp"]),
        ("photos/day ?/*.jpg", ["day 1/b.jpg"]),
    ],
)
def test_a_pattern_gives_what_fits_below_its_first_wildcard(folder: Path, pattern: str, expected: list[str]) -> None:
    assert sorted(name for name, _ in found(pattern)) == expected


def test_links_in_circles_give_each_image_once(folder: Path) -> None:
    for name, target in (("self", "."), ("day 1/up", ".."), ("one", "two"), ("two", "one"), ("day 1/twin", "../day 1")):
        (folder / "photos" / name).symlink_to(target)
    expected = ["a.PNG", "b.jpg", "day 1/b.jpg", "day 1/deep/c.webp"]
    assert [name for name, _ in found("photos")] == expected
    assert [name for name, _ in found("photos/**/*")] == [*expected[:2], "clip.mp4", *expected[2:]]


def test_a_file_whose_name_has_brackets_is_no_pattern(folder: Path) -> None:
    (folder / "a[1].jpg").touch()
    assert found("a[1].jpg") == [("a[1].jpg", "a[1]")]


def test_nothing_to_predict_is_refused_by_name(folder: Path) -> None:
    (folder / "empty").mkdir()
    for given, words in (
        ("empty", "empty: no image in this folder"),
        ("gone", "gone: no such file or folder"),
        ("photos/*.tif", "photos/\\*.tif: no image or video matches"),
    ):
        with pytest.raises(InputError, match=words):
            found(given)


def test_equal_names_are_numbered_whatever_case_and_suffix() -> None:
    names = unique_names(["a.jpg", "A.png", "b/a.jpg", "a.jpg", "a_2.jpg", "Masks/a.jpg", "coco/x.png"])
    assert names == ["a", "A_2", "b/a", "a_3", "a_2_2", "Masks_images/a", "coco_images/x"]
    assert unique_names(["caf\u00e9.jpg", "cafe\u0301.jpg"]) == ["caf\u00e9", "cafe\u0301_2"]


def test_ids_are_the_numbers_in_the_names_only_if_all_are_different(folder: Path) -> None:
    sources = find_sources(["photos"], Path("photos/out"))
    assert ids_of(sources) == [1, 2, 3, 4]
    for name in ("7.jpg", "00012.jpg", "sub/7.png"):
        (folder / "n" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "n" / name).touch()
    numbered = find_sources(["n"], Path("out"))
    assert ids_of(numbered[:2]) == [12, 7] and ids_of(numbered) == [1, 2, 3]


def test_no_outputs_file_is_in_the_place_of_a_folder_and_no_name_is_too_long() -> None:
    assert unique_names(["x.jpg", "x.png/a.jpg", "v1.2/a.jpg", "v1.jpg"]) == ["x_2", "x.png/a", "v1.2/a", "v1"]
    assert unique_names(["labels.txt/a.jpg", "a/labels.txt/b.jpg"]) == ["labels.txt_images/a", "a/labels.txt/b"]
    long = unique_names(["\u6f22" * 83 + ".jpg", "\u6f22" * 84 + ".jpg", "d/" + "n" * 251 + ".jpg"])
    assert len(set(long)) == 3 and max(len(name.encode()) for name in long) < 185 and long[0] == "\u6f22" * 60


@pytest.mark.parametrize("stem", ["\u00b2", "12345678901234567890123", "-3", "\u0663"])
def test_a_name_that_is_no_id_numbers_all_images(stem: str) -> None:
    sources = [Source(Path(f"{name}.jpg"), f"{name}.jpg", name) for name in ("7", stem)]
    assert ids_of(sources) == [1, 2] and ids_of(sources[:1]) == [7]


def test_ids_are_looked_up_by_whole_name_and_else_by_base_name(folder: Path) -> None:
    names = {"day 1\\b.jpg": 31, "b.jpg": 32, "elsewhere/a.PNG": 33, "c.webp": 34}
    images = [{"id": i, "file_name": name, "height": 4, "width": 6} for name, i in names.items()]
    file = folder / "ids.json"
    file.write_text(json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}))
    sources = find_sources(["photos"], Path("photos/out"))
    assert ids_of(sources, str(file)) == [33, 32, 31, 34]
    assert all(image.size == (4, 6) for image in with_ids(sources, str(file)))
    with pytest.raises(InputError, match="b.jpg is the name of several images in"):
        ids_of([renamed(sources[1])], str(file))
    with pytest.raises(InputError, match="another image has the same id"):
        ids_of([*sources, sources[0]], str(file))


def renamed(source: Source) -> Source:
    """The same file, as if it had been found in another folder."""
    return Source(source.path, f"unknown/{source.file_name}", source.name)


def test_ids_are_looked_up_in_files_without_annotations_too(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """As COCO has them of its test images."""
    sources = find_sources(["photos/a.PNG", "photos/b.jpg"], Path("out"))
    images = [{"id": k, "file_name": name, "height": 2, "width": 3} for k, name in ((7, "b.jpg"), (9, "a.PNG"))]
    content: dict = {"images": images, "categories": []}
    file = folder / "image_info.json"
    file.write_text(json.dumps(content))
    assert ids_of(sources, str(file)) == [9, 7]
    assert with_ids(sources, str(file))[0].size == (2, 3)
    file.write_text(json.dumps(content | {"images": [{"id": 7}]}))
    with pytest.raises(InputError, match="image_info.json: an image lacks file_name"):
        with_ids(sources, str(file))
    annotations = [{"id": 1, "image_id": "x", "category_id": 1, "bbox": [0, 0, 1, 1]}]
    whole = content | {"annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    file.write_text(json.dumps(whole | {"images": [*images, {"id": "8", "file_name": "c.jpg"}]}))
    assert ids_of(sources, str(file)) == [9, 7] and "image_info.json: " in capsys.readouterr().err
