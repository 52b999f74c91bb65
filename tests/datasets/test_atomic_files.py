"""Writers make new files: links keep their content, devices stay, and only this program's leftovers are removed."""

import errno
import os
from pathlib import Path

import pytest
from PIL import Image

from dataset_files.atomic_files import (
    link_atomically,
    open_new,
    refuse_overwriting,
    renaming_to,
    replacing,
    write_atomically,
    write_csv,
    write_image,
)


@pytest.fixture
def linked(tmp_path: Path) -> tuple[Path, Path]:
    """A file, and a hard link to it."""
    (tmp_path / "original.png").write_text("original")
    os.link(tmp_path / "original.png", tmp_path / "out.png")
    return tmp_path / "original.png", tmp_path / "out.png"


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_atomically(path, "new"),
        lambda path: write_csv(path, ["a"], [[1]]),
        lambda path: write_image(path, Image.new("RGB", (2, 2))),
        lambda path: open_new(path).close(),
    ],
)
def test_no_writer_writes_through_a_link(linked: tuple[Path, Path], write) -> None:
    original, out = linked
    write(out)
    assert original.read_text() == "original" and out.read_bytes() != original.read_bytes()


def test_a_link_to_the_same_file_is_made_again_without_leftovers(linked: tuple[Path, Path], tmp_path: Path) -> None:
    original, out = linked
    link_atomically(original, out)
    assert os.path.samefile(original, out) and len(list(tmp_path.iterdir())) == 2


def test_an_error_leaves_the_old_file_and_names_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(OSError) as raised, replacing(tmp_path / "a.txt") as file:
        file.write(b"ne")
        raise OSError(28, "No space left on device")
    assert raised.value.filename == str(tmp_path / "a.txt")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_full_disk_that_torch_hides_in_another_error_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as raised, replacing(tmp_path / "x.pth"):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")
    assert raised.value.filename == str(tmp_path / "x.pth") and not list(tmp_path.iterdir())


def test_names_of_255_bytes_can_be_written(tmp_path: Path) -> None:
    write_image(tmp_path / f"{'x' * 251}.png", Image.new("RGB", (2, 2)))
    assert len(list(tmp_path.iterdir())) == 1


def test_devices_pipes_and_folders_are_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(FileExistsError, match="not a regular file"), renaming_to(tmp_path / name):
            pass
        with pytest.raises(FileExistsError, match="not a regular file"):
            open_new(tmp_path / name)
        with pytest.raises(ValueError, match="not a regular file"):
            refuse_overwriting([], [tmp_path / name])


def test_an_input_is_recognised_under_any_of_its_names(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    (photos / "sub" / "a.png").write_text("photo")
    (tmp_path / "linked").symlink_to(photos)
    (tmp_path / "alias.png").symlink_to(photos / "sub" / "a.png")
    os.link(photos / "sub" / "a.png", tmp_path / "hard.png")
    given = photos / "sub" / "a.png"
    for inputs, output in (
        (given, given),
        (given, photos / "sub" / ".." / "sub" / "a.png"),
        (given, tmp_path / "linked" / "sub" / "a.png"),
        (tmp_path / "alias.png", given),
        (tmp_path / "alias.png", tmp_path / "alias.png"),
    ):
        with pytest.raises(ValueError, match="would be overwritten"):
            refuse_overwriting([inputs], [output])
    for folder in (photos, tmp_path / "linked", photos / "sub"):
        with pytest.raises(ValueError, match="lies in"):
            refuse_overwriting([given], [], [folder])
    # Another name of the same file is replaced without harm to the input.
    refuse_overwriting([given], [tmp_path / "hard.png", tmp_path / "alias.png", photos / "sub" / "b.png"])


def test_cells_that_are_formulas_are_guarded_and_numbers_are_not(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "a.csv", ["x"], [["=1+1"], ["+a"], ["@b"], ["-c"], [" =d"], ["-1.50"], [-2], ["a=b"], ["\udce9"]]
    )
    cells = (tmp_path / "a.csv").read_text().splitlines()[1:]
    assert cells == ["'=1+1", "'+a", "'@b", "'-c", "' =d", "-1.50", "-2", "a=b", "\\udce9"]
