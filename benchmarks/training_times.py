"""Hooks for train.py that store the processor time of each epoch's steps.

`training_beside_torchvision.py` passes this file to --hooks, and its folder in the variable BESIDE_TORCHVISION.
"""

import json
import os
import time
from pathlib import Path

from train_utils.training_state import RunState

FOLDER = Path(os.environ["BESIDE_TORCHVISION"])
began = 0.0


def before_step(state: RunState) -> None:
    global began
    if state.number % state.steps_per_epoch == 0:
        began = time.process_time()


def after_step(state: RunState) -> None:
    if state.step is not None and state.ends_epoch(state.step.number):
        entry = {"epoch": state.step.number // state.steps_per_epoch - 1, "seconds": time.process_time() - began}
        with open(FOLDER / "train.py" / "times.jsonl", "a") as file:
            file.write(json.dumps(entry) + "\n")
