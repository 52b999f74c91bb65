"""Networks for images of other channels than RGB: the first convolution, statistics, augmentation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d

import transforms
from backbone.resnet50_fpn import extend_stem
from network_files import InstanceMasks
from tests.helpers.stored_data import write_set
from tests.helpers.thin_weights import thin_networks
from train_utils.errors import InputError
from train_utils.models import STEM, ModelConfig, build_training_model
from train_utils.open_data import open_training_data
from train_utils.options import DataSettings, TrainSettings


@pytest.mark.parametrize("channels", range(1, 9))
def test_the_extended_convolution_responds_to_grey_images_as_before(channels: int):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, 7, 7, generator=generator, dtype=torch.float64)
    grey = torch.randn(1, 1, 20, 20, generator=generator, dtype=torch.float64)
    extended = extend_stem(weight, channels)
    assert extended.shape == (4, channels, 7, 7)
    torch.testing.assert_close(
        conv2d(grey.expand(-1, channels, -1, -1), extended), conv2d(grey.expand(-1, 3, -1, -1), weight)
    )
    if channels >= 3:
        torch.testing.assert_close(extended[:, :3], weight * 3 / channels)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("channels"), np.save, ".npy", channels=4)


def opened(data: Path, channels: int):
    settings = DataSettings(data_path=str(data), channels=channels)
    settings.given = frozenset({"data_path", "channels"})
    return open_training_data(settings, seed=0)[0]


def built(data: Path, pretrain, channels: int | None = 4):
    settings = TrainSettings(pretrain=pretrain, channels=channels, min_size=64, max_size=64)
    return build_training_model(settings, 3, None, {1: "square", 2: "disc"}, opened(data, 4))


def saved(path: Path, model, config: ModelConfig) -> str:
    torch.save(
        {"model": model.state_dict(), "model_config": config.to_plain(), "class_names": {1: "square", 2: "disc"}}, path
    )
    return str(path)


def test_weights_of_rgb_are_extended_and_their_stem_is_trained(data: Path, tmp_path: Path, capsys):
    with thin_networks():
        rgb, config = built(data, False, None)
        path = saved(tmp_path / "rgb.pth", rgb, config)
        model, config = built(data, path)
    assert "extended from 3" in capsys.readouterr().out
    torch.testing.assert_close(model.state_dict()[STEM], extend_stem(rgb.state_dict()[STEM], 4))
    assert (config.channels, config.values, config.trainable_layers) == (4, "uint16", 5)
    assert len(config.image_mean) == 4 and abs(config.image_mean[0] - 30_000) < 200
    torch.testing.assert_close(model.transform.pixel_mean.flatten(), torch.tensor(config.image_mean))


def test_weights_of_the_same_channels_load_as_they_are_with_their_statistics(data: Path, tmp_path: Path):
    with thin_networks():
        first, config = built(data, False)
        config.image_mean, config.image_std = [1.0, 2, 3, 4], [5.0, 6, 7, 8]
        path = saved(tmp_path / "four.pth", first, config)
        model, own = built(data, path)
        assert all(torch.equal(value, first.state_dict()[key]) for key, value in model.state_dict().items())
        assert (own.image_mean, own.image_std) == (config.image_mean, config.image_std)
        config.values = "float32"  # statistics in other units
        _, own = built(data, saved(tmp_path / "four.pth", first, config))
        assert own.image_mean != config.image_mean
        for channels in (None, 3):
            with pytest.raises(InputError, match="was trained with --channels 4; give the same"):
                built(data, path, channels)


def item(image: torch.Tensor) -> tuple[torch.Tensor, dict]:
    plane = torch.zeros(1, *image.shape[1:], dtype=torch.uint8)
    plane[:, 4:20, 6:30] = 1
    target = {
        "boxes": torch.tensor([[6.0, 4, 30, 20]]),
        "labels": torch.tensor([1]),
        "masks": InstanceMasks.from_dense(plane),
    }
    return image, target | {"area": torch.tensor([384.0]), "iscrowd": torch.tensor([0])}


@pytest.mark.parametrize("dtype", (torch.uint8, torch.float32))
def test_every_augmentation_takes_five_channels(dtype: torch.dtype):
    image = (torch.rand(5, 40, 50, generator=torch.Generator().manual_seed(1)) * 250).to(dtype)
    flipped, _ = transforms.RandomHorizontalFlip(1.0)(*item(image))
    assert torch.equal(flipped, image.flip(-1))
    torch.manual_seed(3)
    scaled = [transforms.ScaleJitter(64, (0.5, 1.5))(*item(image)) for _ in range(2)]
    images, targets = transforms.CopyPaste()(scaled)
    assert all(each.shape == (5, 64, 64) and each.dtype == dtype for each in images)
    assert images[0].float().std() < 1000 and all(len(target["boxes"]) for target in targets)


def test_jitter_keeps_to_each_channels_own_offset_and_range():
    image = 30_000 + 50 * torch.randn(2, 30, 30, generator=torch.Generator().manual_seed(1))
    image[1] *= 2
    jitter = transforms.ColorJitter(0.5)
    assert torch.allclose(jitter.change(image, 1.0, 1.0, 0.3), image)
    mean, deviation = image.mean((1, 2), keepdim=True), image.std((1, 2), keepdim=True, correction=0)
    torch.testing.assert_close(jitter.change(image, 1.4, 0.5, 1.0), mean + 0.5 * (image - mean) + 0.4 * deviation)
    bytes_ = jitter.change(torch.full((2, 3, 3), 255, dtype=torch.uint8), 1.5, 1.5, 1.0)
    assert bytes_.dtype == torch.uint8 and bool((bytes_ == 255).all())
