"""Equal steps and runs have equal bits with several threads, each kind of network, in a process of its own."""

import subprocess
import sys

import pytest

from tests.helpers.project import ROOT


@pytest.mark.long
@pytest.mark.parametrize("arguments", [["--threads", "2"], ["--threads", "4", "--networks", "v1"]])
def test_steps_and_runs_are_bit_identical_with_several_threads(arguments: list[str]):
    """In short; `python -m tests.programs.determinism` compares every network with 20 repetitions and six steps."""
    command = [sys.executable, "-m", "tests.programs.determinism", "--repeats", "3", "--steps", "1", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "DIFFER" not in done.stdout, done.stdout + done.stderr
