"""What can go wrong in a run, put into its process before the script starts: see `forked.start`'s `prepare`.

Each is a picklable object that is called there; `All` puts several into one process.
"""

import errno
import importlib
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path


def patch(target: str, make: Callable[[Callable], Callable]) -> None:
    """Put `make(old)` in the place of what "package.module:Name.name" names."""
    module, _, path = target.partition(":")
    owner = importlib.import_module(module)
    *names, last = path.split(".")
    for name in names:
        owner = getattr(owner, name)
    old = getattr(owner, last)
    setattr(owner, last, wraps(old)(make(old)))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class All:
    parts: tuple[Callable[[], None], ...]

    def __call__(self) -> None:
        for part in self.parts:
            part()


class ThinNetwork:
    """A Mask R-CNN of a hundredth of the weights, curves and sheets as numbers: a run takes a tenth of the time."""

    def __call__(self) -> None:
        patch("train_utils.models:build_model", lambda _: thin_model)
        for target, instead in NOTHING_DRAWN.items():
            patch(target, lambda _, instead=instead: instead)


def numbers_instead(*arguments) -> None:
    columns = [each for each in arguments if not isinstance(each, (Path, dict))]
    (path,) = (each for each in arguments if isinstance(each, Path))
    if len({len(column) for column in columns}) > 1:
        raise ValueError("curves of different lengths")  # as the real ones do
    path.write_text(repr([*columns, *(each for each in arguments if isinstance(each, dict))]))


def boxes_instead(_image, boxes, *_):
    """An image of a few pixels, whose colours are the bytes of the boxes."""
    import numpy as np
    from PIL import Image

    values = np.frombuffer(np.asarray(boxes, dtype=np.float32).tobytes() or b"none", dtype=np.uint8)
    return Image.fromarray(np.resize(values, (16, 16, 3)))


NOTHING_DRAWN = {
    "train_utils.run.run_folder:plot_loss_and_lr": numbers_instead,
    "train_utils.run.run_folder:plot_map": numbers_instead,
    "train_utils.visual.sheets:draw_instances": boxes_instead,
}


class ImpatientWatchdog:
    """Processes that miss another one after half a second."""

    def __call__(self) -> None:
        from train_utils.run import watchdog

        watchdog.INTERVAL, watchdog.HEARTBEAT_TIMEOUT, watchdog.GRACE = 0.1, 1.0, 0.5


def thin_bodies():
    """Context in which the ResNets of all networks have few layers and channels."""
    from unittest import mock

    from backbone import resnet

    return mock.patch.multiple(resnet, STAGE_BLOCKS=(1, 1, 1, 1), STAGE_WIDTHS=(8, 8, 16, 16))


def thin_model(config):
    from functools import partial

    from torch import nn
    from torchvision.ops import FrozenBatchNorm2d

    from backbone import resnet
    from backbone.feature_pyramid import FeaturePyramidNetwork, LastLevelMaxPool
    from backbone.resnet50_fpn import BackboneWithFPN
    from network_files import MaskRCNN
    from network_files.heads import FastRCNNPredictor, MaskRCNNHeads, MaskRCNNPredictor, TwoMLPHead
    from train_utils.models import anchors_of

    norm = FrozenBatchNorm2d if config.norm == "frozen" else nn.BatchNorm2d
    with thin_bodies():
        body = resnet.ResNet(partial(norm, eps=config.norm_eps), in_channels=config.channels or 3)
        backbone = BackboneWithFPN(body, FeaturePyramidNetwork(body.out_channels, 16, LastLevelMaxPool()))
    backbone.out_channels = 16
    return MaskRCNN(
        backbone,
        min_size=config.min_size,
        max_size=config.max_size,
        image_mean=config.image_mean,
        image_std=config.image_std,
        box_batch_size_per_image=config.rois_per_image,
        box_detections_per_img=config.detections,
        rpn_anchor_generator=anchors_of(config),
        box_agnostic_nms=config.agnostic_nms,
        box_head=TwoMLPHead(16 * 49, 32),
        box_predictor=FastRCNNPredictor(32, config.num_classes),
        mask_head=MaskRCNNHeads(16, (16,)),
        mask_predictor=MaskRCNNPredictor(16, 16, config.num_classes),
        rpn_post_nms_top_n_train=config.proposals or 100,
        rpn_post_nms_top_n_test=config.proposals or 50,
    )


class HalfPrecision:
    """fp16 and a GradScaler, as a GPU without bf16 takes them, on the CPU; the scale changes every few steps."""

    def __call__(self) -> None:
        import torch

        from train_utils.device import Precision

        patch("train_utils.device:Precision.choose", lambda _: lambda device, amp: Precision("cpu", torch.float16))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=3)
        patch("train_utils.device:Precision.scaler", lambda _: lambda self: scaler)


@dataclass
class DieAtStep:
    """SIGKILL in the n-th training step of this process, counted from 0."""

    number: int

    def __call__(self) -> None:
        left = self.number

        def make(step):
            def stepping(*args):
                nonlocal left
                left -= 1
                if left < 0:
                    die()
                return step(*args)

            return stepping

        patch("train_utils.engine:train_step", make)


@dataclass
class DieIn:
    """SIGKILL before or after the n-th call of a function, as "package.module:name"."""

    target: str
    after: bool = False
    number: int = 0

    def __call__(self) -> None:
        left = self.number

        def make(work):
            def working(*args, **kwargs):
                nonlocal left
                left -= 1
                if left < 0 and not self.after:
                    die()
                result = work(*args, **kwargs)
                if left < 0:
                    die()
                return result

            return working

        patch(self.target, make)


@dataclass
class DieWhileSaving:
    """SIGKILL when that many bytes of this process's n-th checkpoint are written."""

    size: int
    number: int = 0

    def __call__(self) -> None:
        limit, left = self.size, self.number

        class Fatal:
            def __init__(self, file):
                self.file, self.written = file, 0

            def write(self, data):
                self.written += len(data)
                if self.written > limit:
                    self.file.write(bytes(data)[: limit - self.written or None])
                    self.file.flush()
                    die()
                return self.file.write(data)

            def __getattr__(self, name):
                return getattr(self.file, name)

        def make(save):
            def saving(content, file):
                nonlocal left
                left -= 1
                return save(content, Fatal(file) if left < 0 else file)

            return saving

        patch("train_utils.run.run_folder:torch.save", make)


@dataclass
class HangAtStep:
    """This process stands still in its n-th training step."""

    number: int

    def __call__(self) -> None:
        left = self.number

        def make(load):
            def loading(*args):
                nonlocal left
                left -= 1
                if left < 0:
                    time.sleep(3600)
                return load(*args)

            return loading

        patch("train_utils.engine:to_device", make)


@dataclass
class LossNotFiniteAt:
    """The loss of these of this process's training steps is not a number, and so are its gradients."""

    numbers: tuple[int, ...]

    def __call__(self) -> None:
        count = -1

        def make(compute):
            def losses(self_, images, targets):
                nonlocal count
                count += 1
                result = compute(self_, images, targets)
                if count in numbers:
                    result["loss_mask"] = result["loss_mask"] * float("nan")
                return result

            return losses

        numbers = self.numbers
        patch("network_files:MaskRCNN.losses", make)


@dataclass
class OutOfMemoryAt:
    """There is no memory for one of this process's training steps, after its forward pass."""

    number: int
    error: str = "torch:OutOfMemoryError"
    message: str = "CUDA out of memory. Tried to allocate 2.00 GiB."

    def __call__(self) -> None:
        left = self.number
        module, _, name = self.error.partition(":")

        def make(compute):
            def losses(*args):
                nonlocal left
                left -= 1
                result = compute(*args)
                if left == -1:
                    raise getattr(importlib.import_module(module), name)(self.message)
                return result

            return losses

        patch("network_files:MaskRCNN.losses", make)


@dataclass
class DiskFull:
    """The first writings of a checkpoint fail when a part of it is on the disk."""

    times: int

    def __call__(self) -> None:
        left = self.times

        class Full:
            def __init__(self, file):
                self.file = file

            def write(self, data):
                if self.file.tell() + len(data) > 100_000:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return self.file.write(data)

            def __getattr__(self, name):
                return getattr(self.file, name)

        def make(save):
            def saving(content, file):
                nonlocal left
                left -= 1
                return save(content, Full(file) if left >= 0 else file)

            return saving

        patch("train_utils.run.run_folder:torch.save", make)


@dataclass
class TryAgainAfter:
    """A checkpoint that could not be written is tried again after so many steps."""

    steps: int

    def __call__(self) -> None:
        from train_utils import training_state

        training_state.TRY_AGAIN = self.steps


@dataclass
class LargestFile:
    """The system itself refuses files of more than that many bytes."""

    size: int

    def __call__(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@dataclass
class Signal:
    """This process gets a signal at its n-th training step; a second one of the same kind some seconds later."""

    signal: int
    number: int
    again_after: float | None = None

    def __call__(self) -> None:
        left = self.number

        def make(step):
            def stepping(*args):
                nonlocal left
                left -= 1
                if left == -1:
                    os.kill(os.getpid(), self.signal)
                    if self.again_after is not None:
                        time.sleep(self.again_after)
                        os.kill(os.getpid(), self.signal)
                        time.sleep(5)
                return step(*args)

            return stepping

        patch("train_utils.engine:set_learning_rate", make)  # just before the step
