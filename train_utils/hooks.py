"""Call hooks before and after training, and before and after each step; the four names are Detectron2's.

The step log, the sheets of predictions and TensorBoard are hooks, and so are the functions in a user's file (--hooks).
"""

from pathlib import Path
from types import ModuleType

from train_utils.errors import InputError
from train_utils.training_state import RunState

MOMENTS = ("before_train", "after_train", "before_step", "after_step")


class Hooks:
    """Hook functions of modules or objects, called with the state in the order of their sources, on every process."""

    def __init__(self, *sources: object):
        self.functions = {
            moment: [getattr(source, moment) for source in sources if hasattr(source, moment)] for moment in MOMENTS
        }

    def call(self, moment: str, state: RunState) -> None:
        for function in self.functions[moment]:
            function(state)


def load_hooks(path: str | None) -> list[ModuleType]:
    """Run a user's Python file and return it as a module; InputError if it has none of the four functions."""
    if path is None:
        return []
    if not Path(path).is_file():
        raise InputError(f"--hooks {path}: no such file")
    module = ModuleType(Path(path).stem)
    module.__file__ = path
    exec(compile(Path(path).read_bytes(), path, "exec"), vars(module))
    if not any(callable(getattr(module, moment, None)) for moment in MOMENTS):
        raise InputError(f"--hooks {path}: defines none of the functions {', '.join(MOMENTS)}")
    return [module]
