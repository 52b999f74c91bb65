"""Stand-ins for packages that a GPU machine may lack: tqdm without bars, and curves without matplotlib."""

import importlib.util
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any


def install() -> list[str]:
    """Put stand-ins in the place of the packages that are missing, and return their names."""
    missing = [name for name in ("tqdm", "matplotlib") if importlib.util.find_spec(name) is None]
    if "tqdm" in missing:
        module = ModuleType("tqdm")
        module.tqdm = NoBar  # type: ignore[attr-defined]
        sys.modules["tqdm"] = module
    if "matplotlib" in missing:
        curves = ModuleType("train_utils.visual.curves")
        for name in ("plot_loss_and_lr", "plot_map"):
            setattr(curves, name, lambda *_, **__: None)
        sys.modules["train_utils.visual.curves"] = curves
    return missing


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
