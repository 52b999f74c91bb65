"""Hook that shows progress on the main process's terminal and writes every n-th step (--print-freq) to log.jsonl."""

import math
import time

import torch
from tqdm import tqdm

from train_utils.distributed import is_main
from train_utils.errors import warn
from train_utils.training_state import RunState, StepResult


class StepLog:
    """Show a progress bar per epoch on a terminal; elsewhere, print every n-th step (--print-freq). Log these steps."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None

    def before_step(self, state: RunState) -> None:
        if self.bar is None:
            self.epoch, self.done = divmod(state.number, state.steps_per_epoch)
            total, desc, disable = state.steps_per_epoch, f"epoch {self.epoch}", None if is_main() else True
            self.bar = tqdm(total=total, initial=self.done, desc=desc, unit="step", disable=disable)
            self.began = self.printed_at = time.perf_counter()
            self.data_times: list[float] = []  # one per step since the last line

    def after_step(self, state: RunState) -> None:
        step, bar = state.step, self.bar
        if step is None or bar is None:
            raise ValueError("after_step without before_step")
        self.data_times.append(step.data_time)
        shown = {"loss": f"{step.losses['loss']:.4f}", "lr": f"{step.lr:.6f}", "data": f"{step.data_time:.3f} s"}
        bar.update()
        bar.set_postfix(shown, refresh=False)
        ends = state.ends_epoch(step.number)
        if step.number % state.settings.print_freq == 0 or ends:
            if bar.disable and is_main():
                print(self.line(state, step), flush=True)
            self.printed_at, self.data_times = time.perf_counter(), []
            values = {name: round(v, 7) if math.isfinite(v) else None for name, v in step.losses.items()}
            state.run.log({"epoch": self.epoch, "step": step.number, "lr": round(step.lr, 7)} | values)
        if ends or state.stopping:
            bar.close()
            self.bar = None
            bad, not_applied = state.training.progress.bad_pictures, state.training.progress.not_applied
            if is_main() and bad:
                warn(f"epoch {self.epoch}: {bad} images could not be read and were replaced by others")
            if is_main() and not_applied:
                warn(f"epoch {self.epoch}: {not_applied} steps were not applied: loss or gradients were not finite")

    def line(self, state: RunState, step: StepResult) -> str:
        now, number = time.perf_counter(), len(self.data_times)
        in_epoch = step.number - self.epoch * state.steps_per_epoch
        left = (now - self.began) / (in_epoch - self.done) * (state.steps_per_epoch - in_epoch)
        words = [f"epoch {self.epoch}", f"step {in_epoch}/{state.steps_per_epoch}"]
        words += [f"{name} {value:.4f}" for name, value in step.losses.items()] + [f"lr {step.lr:.6f}"]
        words += [f"{(now - self.printed_at) / number:.2f} s per step", f"data {sum(self.data_times) / number:.3f} s"]
        if state.training.device.type == "cuda":
            words.append(f"max mem {torch.cuda.max_memory_allocated(state.training.device) / 2**20:.0f} MiB")
        return "  ".join([*words, f"{time.strftime('%H:%M:%S', time.gmtime(left))} left"])
