"""Contact sheets: which images they show, truth beside prediction, and a batch as the network sees it."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from my_dataset_coco import CocoDetection
from tests.helpers.broken_data import SIZE, edit, make_coco
from train_utils.classes import ClassTable
from train_utils.device import Precision
from train_utils.visual.sheets import TILE, chosen_items, contact_sheet, draw_predictions


class Finder(nn.Module):
    """Finds the same in every image: an ape in the left half at 0.9, a bear that is too unsure to be shown."""

    continuous_paste = False

    def detect(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        assert not self.training
        boxes = torch.tensor([[2.0, 2, 30, 60], [40, 2, 62, 60]])
        masks = torch.ones(2, 1, 28, 28)
        return [
            {"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": torch.tensor([0.9, 0.4]), "masks": masks}
            for _ in images
        ]


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDetection:
    make_coco(tmp_path / "data")
    edit(lambda c: c["annotations"].pop(0), "val")(tmp_path)
    edit(lambda c: c["annotations"].pop(0), "val")(tmp_path)
    return CocoDetection(tmp_path / "data", "val")


def sheet(dataset: CocoDetection) -> Image.Image | None:
    model = Finder().train()
    classes = ClassTable.of_dataset(dataset)
    training = SimpleNamespace(model=model, device=torch.device("cpu"), precision=Precision("cpu", None))
    drawn = draw_predictions(training, dataset, classes)
    assert model.training  # the model itself stays as it was
    return drawn


class Counted:
    """A dataset of so many images, of which some have no object."""

    def __init__(self, count: int, empty: set[int] = frozenset()):
        self.count, self.empty = count, empty

    def __len__(self) -> int:
        return self.count

    def target(self, i: int) -> dict:
        return {"labels": [] if i in self.empty else [1]}


@pytest.mark.parametrize(
    "count, empty, expected",
    [
        (80, set(), [0, 10, 20, 30, 40, 50, 60, 70]),
        (80, {0, 1, 10, *range(20, 30)}, [2, 11, 20, 30, 40, 50, 60, 70]),
        (3, {1}, [0, 1, 2]),
        (0, set(), []),
    ],
)
def test_eight_images_are_shown_that_are_spread_over_the_dataset(count, empty, expected):
    assert chosen_items(Counted(count, empty)) == expected


def test_in_large_datasets_only_the_next_images_are_looked_at():
    assert chosen_items(Counted(8000, set(range(30))))[:2] == [0, 1000]


def test_truth_is_on_the_left_and_what_is_found_on_the_right(dataset):
    drawn = sheet(dataset)
    assert drawn.size == (4 * TILE, TILE)  # two images, two tiles each
    tiles = [np.asarray(drawn.crop((k * TILE, 0, (k + 1) * TILE, TILE))).astype(int) for k in range(4)]
    original, _ = dataset[0]
    picture = Image.fromarray(original.permute(1, 2, 0).numpy())
    empty, found = tiles[0], tiles[1]
    plain = contact_sheet([picture.resize((TILE - 8,) * 2, Image.Resampling.BICUBIC)], 1)
    near = np.abs(np.asarray(plain).astype(int) - empty).mean()
    assert near < 25 < np.abs(np.asarray(plain).astype(int)[:, : TILE // 2] - found[:, : TILE // 2]).mean()
    right = slice(TILE // 2 + 20, TILE)
    assert np.abs(found[60:, right] - empty[60:, right]).mean() < 5  # the unsure bear is not drawn
    assert np.abs(tiles[2] - tiles[3]).mean() > 5


def test_the_sheet_is_the_same_every_time(dataset):
    assert sheet(dataset).tobytes() == sheet(dataset).tobytes()


def test_images_that_cannot_be_read_are_passed_over(dataset):
    dataset.image_path(0).write_bytes(b"broken")
    assert sheet(dataset).size == (2 * TILE, TILE)
    dataset.image_path(1).unlink()
    assert sheet(dataset) is None


def test_large_images_are_reduced_and_small_ones_are_not_enlarged():
    tiles = [Image.new("RGB", size, (255, 0, 0)) for size in ((1000, 500), (SIZE, SIZE), (10, 10))]
    drawn = np.asarray(contact_sheet(tiles, columns=2))
    assert drawn.shape == (2 * TILE, 2 * TILE, 3)
    red = (drawn == (255, 0, 0)).all(2)
    counts = [int(red[y : y + TILE, x : x + TILE].sum()) for y in (0, TILE) for x in (0, TILE)]
    assert counts == [(TILE - 8) * (TILE - 8) // 2, SIZE**2, 100, 0]
