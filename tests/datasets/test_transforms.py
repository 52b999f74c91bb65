"""Augmentations: equal to what numpy makes of full planes, and drawn from seed, epoch and image alone."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import functional as library

import transforms
from my_dataset_coco import CocoDetection
from network_files import InstanceMasks
from network_files.image_transform import View
from tests.helpers.augmentation_oracle import AUGMENTATIONS, SIDE, compare, compare_copy_paste, extents
from tests.helpers.drawn_masks import HEIGHT, WIDTH, blobs
from train_utils.augmentation import training_sizes, training_transforms
from train_utils.errors import InputError
from train_utils.loaders import training_loader
from train_utils.options import TrainSettings


@pytest.fixture(scope="module")
def photos_with_objects(data_folder: Path) -> CocoDetection:
    return CocoDetection(data_folder / "coco_tiny", "train")


def drawn_item(count: int = 12) -> tuple[torch.Tensor, dict]:
    """An image of noise with random objects, most of which have several parts."""
    masks = InstanceMasks.from_dense(blobs(count))
    target = {
        "boxes": masks.extents(),
        "labels": torch.arange(1, count + 1),
        "masks": masks,
        "image_id": 7,
        "area": masks.areas().float(),
        "iscrowd": torch.arange(count) % 2,
    }
    return torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8), target


# ----------------------------------------------------------------------------------------------- against full planes


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmented_items_equal_those_of_full_planes_to_the_bit(photos_with_objects, name):
    """`python -m tests.programs.augmentations` does the same with 1,000 draws."""
    for seed in range(8):
        item = photos_with_objects[(3 * seed) % len(photos_with_objects)]
        assert compare(name, *item, seed) == [], (seed, item[1]["image_id"])


def test_copy_paste_equals_that_of_full_planes_to_the_bit(photos_with_objects):
    for seed in range(3):
        batch = [photos_with_objects[(4 * seed + i) % len(photos_with_objects)] for i in range(4)]
        assert compare_copy_paste(batch, seed) == [], seed


@pytest.mark.parametrize(
    "window", [(0, 0, HEIGHT, WIDTH), (5, 9, 20, 30), (0, 40, 37, 13), (30, 0, 7, 53), (11, 7, 1, 1)]
)
def test_a_window_of_masks_equals_a_slice_of_planes(window):
    top, left, height, width = window
    dense = torch.cat([blobs(20), torch.zeros(1, HEIGHT, WIDTH, dtype=torch.uint8)])
    shown = InstanceMasks.from_dense(dense).window(*window)
    planes = dense[:, top : top + height, left : left + width]
    assert shown.size == shown.source_size == (height, width)
    assert torch.equal(shown.dense(), planes) and torch.equal(shown.areas(), planes.flatten(1).sum(1).long())
    assert torch.equal(shown.extents().double(), torch.from_numpy(extents(planes.numpy())))
    pixels = [int(np.prod(b[2:] - b[:2])) for b in extents(planes.numpy())]
    assert shown.crops[:, 2:].prod(1).tolist() == pixels  # no crop is larger than its object


def test_masks_flipped_upside_down_equal_flipped_planes():
    dense = blobs(20)
    flipped = InstanceMasks.from_dense(dense).flip_vertical()
    assert torch.equal(flipped.dense(), dense.flip(-2)) and torch.equal(flipped.flip_vertical().dense(), dense)


@pytest.mark.parametrize("change", ["window", "flip_vertical", "flip_horizontal", "without"])
def test_masks_are_not_changed_after_a_resize(change):
    arguments = {"window": (0, 0, 5, 5), "without": (np.zeros((20, 30), dtype=bool),)}.get(change, ())
    for resized in (
        InstanceMasks.from_dense(blobs(2)).resize(20, 30),
        InstanceMasks.from_dense(blobs(2)).resize(HEIGHT, WIDTH, (50, 60)),
    ):
        with pytest.raises(ValueError, match="before resize"):
            getattr(resized, change)(*arguments)


# ------------------------------------------------------------------------------------------------ objects that are cut


def test_a_cut_object_gets_box_and_area_of_its_rest_and_the_others_keep_theirs():
    planes = torch.zeros(4, HEIGHT, WIDTH, dtype=torch.uint8)
    planes[0, 2:12, 3:13] = 1  # 100 pixels, of which the window shows 5 x 10
    planes[1, 10:20, 20:30] = 1  # inside
    planes[2, 2:12, 40:50] = 1  # 9 of 100 pixels are inside: too few
    planes[3, 30:37, 45:53] = 1  # outside
    target = {
        "boxes": torch.tensor([[2.5, 1, 14, 12.5], [19.5, 9, 31, 20], [40, 2, 50, 12], [45, 30, 53, 37]]),
        "labels": torch.tensor([4, 5, 6, 7]),
        "masks": InstanceMasks.from_dense(planes),
        "image_id": 3,
        "area": torch.tensor([99.5, 98.5, 97.5, 50.0]),
        "iscrowd": torch.tensor([0, 1, 0, 0]),
    }
    image = torch.arange(3 * HEIGHT * WIDTH).reshape(3, HEIGHT, WIDTH).to(torch.uint8)
    shown, found = transforms.crop(image, target, top=3, left=8, height=20, width=33)
    assert torch.equal(shown, image[:, 3:23, 8:41]) and shown.is_contiguous()
    assert found["labels"].tolist() == [4, 5] and found["iscrowd"].tolist() == [0, 1] and found["image_id"] == 3
    assert found["boxes"].tolist() == [[0, 0, 5, 9], [11.5, 6, 23, 17]]
    assert found["area"].tolist() == [45.0, 98.5]
    assert torch.equal(found["masks"].dense(), planes[:2, 3:23, 8:41])
    assert len(target["labels"]) == 4 and target["boxes"][0, 0] == 2.5  # the item itself is unchanged


def test_objects_that_the_scale_makes_smaller_than_a_pixel_are_dropped():
    planes = torch.zeros(2, 400, 400, dtype=torch.uint8)
    planes[0, 100:105, 100:300] = 1
    planes[1, 100:120, 100:300] = 1
    masks = InstanceMasks.from_dense(planes)
    target = {"boxes": masks.extents(), "labels": torch.tensor([1, 2]), "masks": masks}
    _, found = transforms.ScaleJitter(64, (0.5, 0.5))(torch.zeros(3, 400, 400, dtype=torch.uint8), target)
    assert found["view"] == View(32, 32, (64, 64)) and found["labels"].tolist() == [2]


def test_an_object_that_is_covered_wholly_is_dropped_by_copy_paste():
    def item(left: int, width: int, colour: int) -> tuple[torch.Tensor, dict]:
        planes = torch.zeros(1, 32, 32, dtype=torch.uint8)
        planes[0, 8:16, left : left + width] = 1
        masks = InstanceMasks.from_dense(planes)
        target = {"boxes": masks.extents(), "labels": torch.tensor([colour]), "masks": masks}
        return torch.full((3, 32, 32), colour, dtype=torch.uint8), target | {"view": View(32, 32, (32, 32))}

    images, targets = transforms.CopyPaste()([item(4, 10, 100), item(6, 4, 200)])
    assert targets[0]["labels"].tolist() == [100, 200] and targets[1]["labels"].tolist() == [100]
    assert targets[0]["masks"].areas().tolist() == [48, 32] and targets[1]["masks"].areas().tolist() == [80]
    assert (images[0][:, 8:16, 6:10] == 200).all() and int((images[0] == 200).sum()) == 3 * 32
    assert (images[1][:, 8:16, 4:14] == 100).all() and int((images[1] == 100).sum()) == 3 * 80


def test_copy_paste_from_an_image_without_objects_changes_nothing():
    image, target = drawn_item(3)
    empty = transforms.select_objects(target, torch.zeros(3, dtype=torch.bool))
    view = {"view": View(HEIGHT, WIDTH, (HEIGHT, WIDTH))}
    images, targets = transforms.CopyPaste()([(image, target | view), (image.flip(-1), empty | view)])
    assert torch.equal(images[0], image) and targets[0]["labels"].tolist() == [1, 2, 3]
    assert torch.equal(targets[0]["masks"].dense(), target["masks"].dense())
    assert len(targets[1]["masks"]) > 0


def test_images_pasted_into_are_resized_as_the_network_would():
    image, target = drawn_item()
    framed, _ = transforms.in_frame(image, target | {"view": View(20, 60, (64, 64))})
    expected = F.interpolate(image[None].float(), size=(20, 60), mode="bilinear", antialias=True)[0]
    assert (framed[:, :20, :60].float() - expected).abs().max() <= 1
    assert framed[:, 20:].flatten(1).unique(dim=1).flatten().tolist() == [124, 116, 104]


# -------------------------------------------------------------------------------------------------------------- colours


@pytest.mark.parametrize("factors", [(1.3, 1, 1), (1, 0.7, 1), (1, 1, 1.4), (0.8, 1.2, 0.9), (1, 1, 1)])
def test_colours_change_as_in_torchvision(factors):
    """Within the rounding of three steps; colours stay away from 0 and 255, where torchvision clips at each step."""
    image = torch.randint(70, 140, (3, 40, 50), dtype=torch.uint8)
    own = transforms.ColorJitter(0.4).change(image, *factors)
    reference = image
    for adjust, factor in zip((library.adjust_brightness, library.adjust_contrast, library.adjust_saturation), factors):
        reference = adjust(reference, factor)
    assert own.dtype == torch.uint8 and (own.int() - reference.int()).abs().max() <= 3
    assert torch.equal(own, image) or factors != (1, 1, 1)


def test_factors_of_the_colours_fill_their_range():
    jitter, found = transforms.ColorJitter(0.4), []
    jitter.change = lambda image, *factors: found.append(factors) or image
    for _ in range(300):
        jitter(torch.zeros(3, 1, 1), {})
    low, high = np.min(found, axis=0), np.max(found, axis=0)
    assert (low >= 0.6).all() and (low < 0.65).all() and (high <= 1.4).all() and (high > 1.35).all()


def test_scales_fill_their_range_and_images_fit_their_frame():
    image, target = drawn_item()
    views = [transforms.ScaleJitter(SIDE)(image, target)[1]["view"] for _ in range(200)]
    widths = [view.width for view in views]
    assert min(widths) < 0.2 * SIDE and sum(width == SIDE for width in widths) > 60
    assert all(0 < view.height <= SIDE and view.width <= SIDE and view.frame == (SIDE, SIDE) for view in views)


# ------------------------------------------------------------------------------------------------- options and draws


def settings(**options) -> TrainSettings:
    return TrainSettings(batch_size=4, min_size=200, **options)


ALL = {"data_augmentation": "lsj", "use_copypaste": True, "vflip": True, "color_jitter": 0.4}


@pytest.mark.parametrize("options", [{}, ALL], ids=["flips", "all"])
@pytest.mark.slow
def test_the_same_seed_gives_the_same_batches_with_any_number_of_workers(photos_with_objects, options):
    chosen, dataset = settings(**options), copy.copy(photos_with_objects)
    dataset.transforms = training_transforms(chosen)

    def batches(workers: int, epoch: int = 0, first: int = 0) -> list:
        loader = training_loader(dataset, replace(chosen, workers=workers, seed=5), pin_memory=False)
        loader.batch_sampler.start_at(epoch, first)
        return [batch for _, batch in zip(range(4), loader)]

    straight = batches(0)
    for other in (batches(1), batches(3)):
        assert all(same_batch(one, another) for one, another in zip(straight, other, strict=True))
    assert same_batch(batches(1, first=2)[0], straight[2])
    again = batches(0, epoch=1)
    assert not any(same_batch(one, another) for one, another in zip(straight, again))


def same_batch(one: tuple, other: tuple) -> bool:
    images, others = one[0], other[0]
    if [image.shape for image in images] != [image.shape for image in others]:
        return False
    same = all(torch.equal(a, b) for a, b in zip(images, others))
    for a, b in zip(one[1], other[1]):
        same &= set(a) == set(b) and a["image_id"] == b["image_id"] and a.get("view") == b.get("view")
        same &= all(torch.equal(a[key], b[key]) for key in ("boxes", "labels", "area", "iscrowd"))
        same &= torch.equal(a["masks"].pixels, b["masks"].pixels) and torch.equal(a["masks"].crops, b["masks"].crops)
    return same


def test_transforms_follow_the_options():
    def kinds(**options) -> list[str]:
        return [type(each).__name__ for each in training_transforms(settings(**options)).transforms]

    assert kinds() == ["RandomHorizontalFlip"] == kinds(data_augmentation="multiscale")
    assert kinds(data_augmentation="none") == []
    assert kinds(**ALL) == ["ScaleJitter", "RandomHorizontalFlip", "RandomVerticalFlip", "ColorJitter"]


def test_sizes_follow_the_options():
    assert training_sizes(TrainSettings()) == 800
    assert training_sizes(TrainSettings(min_size=[640, 800])) == [640, 800]
    assert training_sizes(TrainSettings(data_augmentation="multiscale")) == [640, 672, 704, 736, 768, 800]
    (jitter, _) = training_transforms(TrainSettings(data_augmentation="lsj")).transforms
    assert jitter.side == 1024 and jitter.scale_range == (0.1, 2.0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"use_copypaste": True}, "--use-copypaste needs --data-augmentation lsj, not hflip"),
        ({"use_copypaste": True, "data_augmentation": "lsj", "batch_size": 1}, "give --batch-size 2 or more"),
        ({"data_augmentation": "lsj", "min_size": [64, 96]}, "--min-size 64 96: --data-augmentation lsj"),
        ({"data_augmentation": "multiscale", "min_size": [64, 96]}, "--min-size 64 96: --data-augmentation multiscale"),
    ],
)
def test_options_that_contradict_one_another_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        training_transforms(TrainSettings(**options))
