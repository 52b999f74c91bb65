"""Turn the augmentation options into transforms of training images, and into the network's input sizes."""

import transforms
from train_utils.errors import InputError
from train_utils.options import TrainSettings

LSJ_SIDE = 1.28  # in units of --min-size: 1024 pixels at 800
STRIDE = 32  # the side is a multiple of this
SIZES = (0.8, 0.84, 0.88, 0.92, 0.96, 1.0)  # sizes of multiscale, in units of --min-size: 640, 672, ..., 800


def training_transforms(settings: TrainSettings) -> transforms.Compose:
    """Return the transforms of training items; InputError if the options contradict each other."""
    augmentation, chosen = settings.data_augmentation, list[transforms.Transform]()
    if settings.use_copypaste and augmentation != "lsj":
        raise InputError(f"--use-copypaste needs --data-augmentation lsj, not {augmentation}")
    if settings.use_copypaste and settings.images_per_step() < 2:
        raise InputError("--use-copypaste takes objects from another image of the batch; give --batch-size 2 or more")
    training_sizes(settings)
    if augmentation == "lsj":
        side = max(1, round(LSJ_SIDE * single_min_size(settings) / STRIDE)) * STRIDE
        chosen.append(transforms.ScaleJitter(side))
    if augmentation != "none":
        chosen.append(transforms.RandomHorizontalFlip())
    if settings.vflip:
        chosen.append(transforms.RandomVerticalFlip())
    if settings.color_jitter:  # last, since lsj crops the image
        chosen.append(transforms.ColorJitter(settings.color_jitter))
    return transforms.Compose(chosen)


def training_sizes(settings: TrainSettings) -> int | list[int]:
    """Return the short side of resized images. From a list, training draws at random, and evaluation takes the last."""
    if settings.data_augmentation == "multiscale":
        return [round(size * single_min_size(settings)) for size in SIZES]
    return settings.min_size


def single_min_size(settings: TrainSettings) -> int:
    """Return --min-size as one number. InputError if it is a list, since multiscale and lsj draw their own sizes."""
    if isinstance(settings.min_size, list):
        sizes = " ".join(map(str, settings.min_size))
        augmentation = settings.data_augmentation
        raise InputError(f"--min-size {sizes}: --data-augmentation {augmentation} draws its own sizes; give one")
    return settings.min_size
