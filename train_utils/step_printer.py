"""Show the progress of an epoch on the main process's terminal, or as lines in a log file."""

import time

from tqdm import tqdm

from train_utils.distributed import is_main
from train_utils.errors import warn
from train_utils.training_state import Progress, StepResult


class StepPrinter:
    """A progress bar on a terminal; elsewhere a line per printed step.

    Args:
        done: steps of the epoch that were finished before.
    """

    def __init__(self, epoch: int, done: int, steps_per_epoch: int):
        self.epoch, self.done, self.steps_per_epoch = epoch, done, steps_per_epoch
        self.started = time.perf_counter()
        self.bar = tqdm(
            total=steps_per_epoch, initial=done, desc=f"epoch {epoch}", unit="step", disable=None if is_main() else True
        )

    def step(self, step: StepResult, in_epoch: int, printed: bool) -> None:
        """Show a step: on the bar, or without a terminal as a line if `printed`."""
        self.bar.update()
        self.bar.set_postfix(loss=f"{step.losses['loss']:.4f}", lr=f"{step.lr:.6f}", refresh=False)
        if printed and self.bar.disable and is_main():
            seconds = (time.perf_counter() - self.started) / (in_epoch - self.done)
            left = time.strftime("%H:%M:%S", time.gmtime(seconds * (self.steps_per_epoch - in_epoch)))
            losses = "  ".join(f"{name} {value:.4f}" for name, value in step.losses.items())
            print(
                f"epoch {self.epoch}  step {in_epoch}/{self.steps_per_epoch}  {losses}  lr {step.lr:.6f}  "
                f"{seconds:.2f} s per step  {left} left",
                flush=True,
            )

    def close(self, progress: Progress) -> None:
        self.bar.close()
        if is_main() and progress.bad_pictures:
            warn(f"epoch {self.epoch}: {progress.bad_pictures} images could not be read and were replaced by others")
        if is_main() and progress.not_applied:
            warn(
                f"epoch {self.epoch}: {progress.not_applied} steps were not applied: loss or gradients were not finite"
            )
