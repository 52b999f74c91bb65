"""Images whose size an augmentation chose: resized once, padded to their frame, and learnt from as in torchvision."""

import pytest
import torch
import torch.nn.functional as F

from network_files import InstanceMasks
from network_files.image_transform import ImageTransform, View
from network_files.mask_rcnn import IMAGENET_MEAN, IMAGENET_STD
from tests.helpers.drawn_masks import HEIGHT, WIDTH, blobs
from tests.helpers.parity import assert_same_losses, in_float64, losses_of, pair

SIDE = 128


@pytest.mark.parametrize("size", [(100, 128), (20, 29), (128, 40), (1, 1), (HEIGHT, WIDTH)])
def test_an_image_with_a_view_is_resized_to_it_and_padded_with_the_mean(size):
    image = torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8)
    masks = InstanceMasks.from_dense(blobs(5))
    boxes = torch.tensor([[1.0, 2, 30, 20]]).repeat(5, 1)
    target = {"boxes": boxes, "masks": masks, "view": View(*size, (SIDE, SIDE))}
    batch, (seen,) = ImageTransform(800, 1333, IMAGENET_MEAN, IMAGENET_STD).train()([image], [target])

    assert batch.image_sizes == [(SIDE, SIDE)] and batch.tensors.shape == (1, 3, SIDE, SIDE)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    shrinks = size[0] < HEIGHT or size[1] < WIDTH
    expected = F.interpolate(image[None].float() / 255, size=size, mode="bilinear", antialias=shrinks)[0]
    shown = batch.tensors[0] * std + mean
    torch.testing.assert_close(shown[:, : size[0], : size[1]], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(shown[:, size[0] :], mean.expand(3, SIDE - size[0], SIDE), rtol=0, atol=1e-6)
    torch.testing.assert_close(shown[:, :, size[1] :], mean.expand(3, SIDE, SIDE - size[1]), rtol=0, atol=1e-6)

    planes = torch.zeros(5, SIDE, SIDE)
    planes[:, : size[0], : size[1]] = F.interpolate(masks.dense()[:, None].float(), size=size)[:, 0]
    assert seen["masks"].size == (SIDE, SIDE) and torch.equal(seen["masks"].dense(), planes.to(torch.uint8))
    factors = torch.tensor([size[1] / WIDTH, size[0] / HEIGHT]).repeat(2)
    torch.testing.assert_close(seen["boxes"], boxes * factors)


def test_a_batch_of_views_of_different_frames_fits_the_largest():
    images = [torch.rand(3, 30, 40), torch.rand(3, 50, 20)]
    targets = [
        {"boxes": torch.zeros(0, 4), "masks": InstanceMasks.from_crops([], tuple(image.shape[1:])), "view": view}
        for image, view in zip(images, (View(30, 40, (64, 64)), View(50, 20, (96, 64))))
    ]
    batch, _ = ImageTransform(800, 1333, IMAGENET_MEAN, IMAGENET_STD).train()(images, targets)
    assert batch.tensors.shape == (2, 3, 96, 64) and batch.image_sizes == [(64, 64), (96, 64)]


def test_a_view_leaves_the_random_numbers_alone():
    """torchvision draws no size either for images that come in the right one."""
    target = {"boxes": torch.zeros(0, 4), "masks": InstanceMasks.from_crops([], (8, 8)), "view": View(8, 8, (8, 8))}
    transform, image = ImageTransform([64, 96], 128, IMAGENET_MEAN, IMAGENET_STD).train(), torch.rand(3, 8, 8)
    before = torch.get_rng_state()
    transform([image], [target])
    assert torch.equal(torch.get_rng_state(), before)
    transform([image], [{key: value for key, value in target.items() if key != "view"}])
    assert not torch.equal(torch.get_rng_state(), before)


def test_losses_of_images_with_views_equal_torchvisions_of_padded_images(photos):
    """The reference gets padded squares, as from torchvision's own lsj, and skips its resize."""
    reference, own = pair()
    reference.transform._skip_resize = True
    images, objects = in_float64(photos)
    mean = torch.tensor(IMAGENET_MEAN, dtype=torch.float64)[:, None, None]
    frames, dense, targets = [], [], []
    for image, target, size in zip(images, objects, ((96, 128), (128, 60), (40, 57))):
        frame = mean.repeat(1, SIDE, SIDE)
        shrinks = size[0] < image.shape[1] or size[1] < image.shape[2]
        frame[:, : size[0], : size[1]] = F.interpolate(image[None], size=size, mode="bilinear", antialias=shrinks)[0]
        frames.append(frame)
        planes = torch.zeros(len(target["boxes"]), SIDE, SIDE, dtype=torch.uint8)
        planes[:, : size[0], : size[1]] = F.interpolate(target["masks"][:, None].float(), size=size)[:, 0]
        factors = torch.tensor([size[1] / image.shape[2], size[0] / image.shape[1]]).repeat(2)
        dense.append(dict(target, boxes=target["boxes"] * factors, masks=planes))
        masks = InstanceMasks.from_dense(target["masks"])
        targets.append(dict(target, masks=masks, view=View(*size, (SIDE, SIDE))))
    assert_same_losses(losses_of(own, images, targets), losses_of(reference, frames, dense))


def test_masks_of_different_frames_are_not_concatenated():
    masks = InstanceMasks.from_dense(blobs(2))
    with pytest.raises(ValueError, match="masks in different frames"):
        InstanceMasks.concatenated(masks, masks.resize(20, 30))
