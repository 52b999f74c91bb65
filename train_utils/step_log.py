"""Hook that shows the steps on the main process's terminal and writes some of them into log.jsonl."""

import math
import time

from tqdm import tqdm

from train_utils.distributed import is_main
from train_utils.errors import warn
from train_utils.hooks import RunState
from train_utils.training_state import Progress, StepResult


class StepLog:
    """A progress bar per epoch, or without a terminal a line per printed step; printed steps go into the log as well.

    Every `--print-freq`-th step is printed, and the last of an epoch.
    """

    def __init__(self) -> None:
        self.printer: StepPrinter | None = None

    def before_step(self, state: RunState) -> None:
        if self.printer is None:
            epoch, done = divmod(state.number, state.steps_per_epoch)
            self.printer = StepPrinter(epoch, done, state.steps_per_epoch)

    def after_step(self, state: RunState) -> None:
        step, printer = state.step, self.printer
        if step is None or printer is None:
            raise ValueError("after_step without before_step")
        ends = state.ends_epoch(step.number)
        printed = step.number % state.settings.print_freq == 0 or ends
        printer.show(step, printed)
        if printed:
            values = {name: round(v, 7) if math.isfinite(v) else None for name, v in step.losses.items()}
            state.run.log({"epoch": printer.epoch, "step": step.number, "lr": round(step.lr, 7)} | values)
        if ends or state.stopping:
            printer.close(state.training.progress)
            self.printer = None


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

    def show(self, step: StepResult, printed: bool) -> None:
        """Show a step: on the bar, or without a terminal as a line if `printed`."""
        self.bar.update()
        self.bar.set_postfix(loss=f"{step.losses['loss']:.4f}", lr=f"{step.lr:.6f}", refresh=False)
        if printed and self.bar.disable and is_main():
            in_epoch = step.number - self.epoch * self.steps_per_epoch
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
