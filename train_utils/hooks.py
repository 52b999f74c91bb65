"""Call functions at four moments of a run: before and after training, and before and after each step.

The step log, the sheets of predictions and TensorBoard are hooks, and so are the functions in a user's own file
(--hooks). The four names are Detectron2's.
"""

import importlib.util
from pathlib import Path
from types import ModuleType

from train_utils.errors import InputError
from train_utils.training_state import RunState

MOMENTS = ("before_train", "after_train", "before_step", "after_step")


class Hooks:
    """Collect hook functions and call them in the order of their sources, on every process.

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


def load_hooks(path: str | None) -> list[ModuleType]:
    """Run a user's Python file, if given, and return it as a module. Its own exceptions keep their traceback.

    Raises:
        InputError: the file is missing, or defines none of the four functions.
    """
    if path is None:
        return []
    if not Path(path).is_file():
        raise InputError(f"--hooks {path}: no such file")
    spec = importlib.util.spec_from_loader(Path(path).stem, loader=None)
    if spec is None:
        raise InputError(f"--hooks {path}: not the name of a Python file")
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    exec(compile(Path(path).read_bytes(), path, "exec"), vars(module))
    if not any(callable(getattr(module, moment, None)) for moment in MOMENTS):
        raise InputError(f"--hooks {path}: defines none of the functions {', '.join(MOMENTS)}")
    return [module]
