"""Stand-ins for packages that a GPU machine may lack: tqdm, matplotlib's curves, and pycocotools' run-length codes."""

import importlib.util
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image, ImageDraw


def install() -> list[str]:
    """Replace the packages that are missing, and return their names."""
    missing = [name for name in ("tqdm", "matplotlib", "pycocotools", "yaml") if importlib.util.find_spec(name) is None]
    if "tqdm" in missing:
        add_module("tqdm", tqdm=NoBar)
    if "matplotlib" in missing:
        nothing = {name: lambda *_, **__: None for name in ("plot_loss_and_lr", "plot_map")}
        add_module("train_utils.visual.curves", **nothing)
    if "pycocotools" in missing:
        add_module("pycocotools", mask=add_module("pycocotools.mask", frPyObjects=codes_of, area=areas_of))
    if "yaml" in missing:
        names = ("BaseLoader", "Node", "MappingNode")  # of which classes are derived; only layouts but COCO's use more
        add_module("yaml", **{name: type(name, (), {}) for name in names})
    return missing


def add_module(name: str, **content: Any) -> ModuleType:
    module = sys.modules[name] = ModuleType(name)
    module.__dict__.update(content)
    return module


def codes_of(polygons: list[list[float]], height: int, width: int) -> list[dict]:
    """Run-length codes of polygons, drawn by Pillow: their outlines differ by a pixel from those of pycocotools."""
    from network_files.masks.rle import compress, encode_crop

    codes = []
    for polygon in polygons:
        plane = Image.new("1", (width, height))
        ImageDraw.Draw(plane).polygon([float(value) for value in polygon], fill=1)
        codes.append(encode_crop(np.asarray(plane), 0, 0, height, width))
    return compress(codes)


def areas_of(codes: list[dict]) -> list[int]:
    from network_files.masks.rle import unpack_all

    return [int(unpack_all([code["counts"]])[0][1::2].sum()) for code in codes]


class NoBar:
    """What this project uses of tqdm, without a bar."""

    disable = True

    def __init__(self, iterable: Iterable = (), **_: Any):
        self.iterable = iterable

    def __iter__(self):
        return iter(self.iterable)

    def __enter__(self) -> "NoBar":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def update(self, *_: Any) -> None:
        pass

    close = set_postfix = set_description = update

    @staticmethod
    def write(text: str, file: Any = None) -> None:
        print(text, file=file or sys.stdout)
