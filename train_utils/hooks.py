"""Call functions at four moments of a run: before and after training, and before and after each step.

The log, the sheets of predictions and TensorBoard are written there, and so can be what a user's own file does
(--hooks). The moments have the names of Detectron2's.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from train_utils.errors import InputError
from train_utils.options import TrainSettings
from train_utils.run.run_folder import RunFolder
from train_utils.training_state import StepResult, Training

MOMENTS = ("before_train", "after_train", "before_step", "after_step")


@dataclass
class RunState:
    """A run, as it is given to the functions.

    Attributes:
        training: model, optimizer, progress and so on.
        settings: the options.
        run: the run folder; `run.writes` is true on the main process only.
        steps_per_epoch: of a whole epoch.
        last_step: the step after which the run ends.
        number: steps that have been started. Before a step, the weights are those after so many.
        step: the step that `after_step` is about, with its losses. By then the device may be computing the next one.
        stopping: whether a signal stops the run after that step.
    """

    training: Training
    settings: TrainSettings
    run: RunFolder
    steps_per_epoch: int
    last_step: int
    number: int
    step: StepResult | None = None
    stopping: bool = False

    def epoch_of(self, step: int) -> int:
        """The epoch that a step, counted from 1, belongs to."""
        return (step - 1) // self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Whether the epoch ends with a step, counted from 1, or the run does within it."""
        return step > 0 and (step % self.steps_per_epoch == 0 or step == self.last_step)


class Hooks:
    """Functions by moment, in the order of their sources; called on every process.

    Args:
        sources: modules or objects with functions `before_train(state)`, `after_train(state)`, `before_step(state)`
            and `after_step(state)`, or some of them.
    """

    def __init__(self, *sources: object):
        self.functions = {
            moment: [getattr(source, moment) for source in sources if hasattr(source, moment)] for moment in MOMENTS
        }

    def call(self, moment: str, state: RunState) -> None:
        for function in self.functions[moment]:
            function(state)


def load_hooks(path: str) -> ModuleType:
    """Run a user's Python file and return it as a module; what it raises keeps its traceback.

    Raises:
        InputError: there is no such file, or it defines no function of the four names.
    """
    if not Path(path).is_file():
        raise InputError(f"--hooks {path}: no such file")
    spec = importlib.util.spec_from_loader(Path(path).stem, loader=None)
    if spec is None:
        raise InputError(f"--hooks {path}: not the name of a Python file")
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    exec(compile(Path(path).read_bytes(), path, "exec"), vars(module))
    if not any(callable(getattr(module, moment, None)) for moment in MOMENTS):
        raise InputError(f"--hooks {path}: defines no function of the names {', '.join(MOMENTS)}")
    return module
