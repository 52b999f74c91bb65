"""Run a script under torchrun with a fault in it: torchrun ... -m tests.programs.with_fault SCRIPT ARGUMENTS.

FAULT is a Python expression of tests/helpers/faults.py, for the process of rank FAULT_RANK in its first start.
"""

import os
import runpy
import sys

import torch

from tests.helpers import faults
from tests.helpers.project import ROOT

if __name__ == "__main__":
    torch.set_num_threads(1)
    if os.environ.get("THIN"):
        faults.ThinNetwork()()
        faults.ImpatientWatchdog()()
    if os.environ["RANK"] == os.environ.get("FAULT_RANK") and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        eval(os.environ["FAULT"], vars(faults))()
    sys.argv = sys.argv[1:]
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
