"""Hook that shows a run in TensorBoard: the log, results files and sheets of predictions in its folder.

A resumed run adds to TensorBoard's files: `purge_step` discards the old entries, and all are copied again from the
run's own files, so that each step is shown once.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dataset_files.atomic_files import os_error_behind
from train_utils.errors import optional_package, warn
from train_utils.metrics.coco_evaluation import METRIC_NAMES
from train_utils.run.run_folder import EVENTS, LOG, epoch_of
from train_utils.training_state import RunState

GROUPS = {"bbox": "box", "segm": "mask"}


class TensorBoard:
    """Write the scalars of logged steps, and the results and sheet of each epoch. Only the main process writes."""

    def __init__(self) -> None:
        optional_package("torch.utils.tensorboard", "--tensorboard needs TensorBoard", "tensorboard")
        self.writer: Any = None
        self.logged = 0  # lines of the log copied so far
        self.shown: set[str] = set()  # sheets and results lines copied so far

    def before_train(self, state: RunState) -> None:
        if state.run.writes:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(state.run.path / EVENTS), purge_step=0)
            self.copy(state)

    def before_step(self, state: RunState) -> None:
        if state.ends_epoch(state.number):  # the epoch has been evaluated
            self.copy(state)

    def after_step(self, state: RunState) -> None:
        if state.step and (state.step.number % state.settings.print_freq == 0 or state.ends_epoch(state.step.number)):
            self.copy(state)

    def after_train(self, state: RunState) -> None:
        self.copy(state)
        if self.writer is not None:
            self.writer.close()

    def copy(self, state: RunState) -> None:
        """Copy what is new in the run's files to TensorBoard. On a full disk, warn and stop writing."""
        if self.writer is None:
            return
        try:
            self.copy_log(state.run.path / LOG)
            self.copy_epochs(state)
            self.writer.flush()
        except (OSError, RuntimeError) as error:
            if (reason := os_error_behind(error)) is None:
                raise
            self.writer = None
            warn(f"{state.run.path / EVENTS} could not be written ({reason.strerror}); this run no longer writes it")

    def copy_log(self, log: Path) -> None:
        lines = log.read_bytes().split(b"\n")[:-1] if log.is_file() else []
        new, self.logged = lines[self.logged :], len(lines)
        for entry in map(json.loads, new):
            for name, value in entry.items():
                group = "validation" if name.startswith("val_") else "training"
                if name not in ("epoch", "step") and value is not None:
                    self.writer.add_scalar(f"{group}/{name.removeprefix('val_')}", value, entry["step"])

    def copy_epochs(self, state: RunState) -> None:
        found: list[tuple[int, str, Path | str]] = [
            (epoch_of(line), kind, line) for kind, lines in state.run.results.items() for line in lines
        ]
        found += [(epoch, "predictions", path) for epoch, path in state.run.sheets().items()]
        for epoch, kind, source in found:
            if (key := f"{kind} {source}") in self.shown:
                continue
            self.shown.add(key)
            end = min((epoch + 1) * state.steps_per_epoch, state.last_step)
            if isinstance(source, Path):
                with Image.open(source) as sheet:
                    self.writer.add_image(kind, np.asarray(sheet), end, dataformats="HWC")
                continue
            values = [float(value) for value in source.split()[1:]]
            for name, value in zip(METRIC_NAMES, values):
                if value >= 0:  # -1: the images have no such objects
                    self.writer.add_scalar(f"{GROUPS[kind]}/{name.replace(' ', '_')}", value, end)
            if kind == "bbox":  # both files contain it
                self.writer.add_scalar("training/mean_loss_of_epoch", values[len(METRIC_NAMES)], end)
