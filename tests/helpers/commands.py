"""Run the scripts as a user would: in this process, which spares importing torch, or as processes of their own."""

import contextlib
import io
import os
import runpy
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch

from tests.helpers import faults
from tests.helpers.project import ROOT
from tests.helpers.thin_weights import thin_networks


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Warnings and the error."""
        return self.err.strip()


def started(command: list[str], folder: Path, **environment: str) -> Outcome:
    """A process of its own, with one thread, as the runs within this process have."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", **environment}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=1800)
    return Outcome(done.returncode, done.stdout, done.stderr)


def under_torchrun(processes: int, folder: Path, script: str, *arguments: str) -> Outcome:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return started([*launcher, str(ROOT / script), *arguments], folder)


def run(folder: Path, script: str, *arguments: str | Path) -> Outcome:
    """The script's file in this process, as python would run it; what it does not catch ends it with status 1."""
    out, err = io.StringIO(), io.StringIO()
    here, argv, threads = os.getcwd(), sys.argv, torch.get_num_threads()
    os.chdir(folder)
    sys.argv = [script, *map(str, arguments)]
    torch.set_num_threads(1)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path(str(ROOT / script), run_name="__main__")
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except Exception:
                traceback.print_exc()
                code = 1
    finally:
        os.chdir(here)
        sys.argv = argv
        torch.set_num_threads(threads)
    return Outcome(code, out.getvalue(), err.getvalue())


def run_thin(folder: Path, script: str, *arguments: str | Path) -> Outcome:
    """The same with a network of a hundredth of the weights, and curves and sheets as numbers."""
    with thin_networks(), contextlib.ExitStack() as stack:
        for target, instead in faults.NOTHING_DRAWN.items():
            stack.enter_context(mock.patch(target.replace(":", "."), instead))
        return run(folder, script, *arguments)


def succeeded(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err[-2000:]
    return outcome


def assert_refused(outcome: Outcome, *named: str) -> None:
    """Exit status 2 and one line that names what is wrong; before it at most warnings."""
    assert "Traceback" not in outcome.err, outcome.err[-2000:]
    assert outcome.code == 2, outcome.err
    *warnings, line = outcome.err.splitlines()
    assert line.startswith("error: ") and all(warning.startswith("warning: ") for warning in warnings)
    for words in named:
        assert words in line
