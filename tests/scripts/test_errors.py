"""What all scripts do when stdout cannot be written to, in processes of their own without torch."""

import subprocess
import sys

import numpy as np
import pytest

from tests.helpers.project import ROOT
from train_utils.errors import is_out_of_memory, naming_batch, one_line_errors

PROLOGUE = "from train_utils.errors import InputError, one_line_errors\nwith one_line_errors():\n"


def piped(body: str, encoding: str = "utf-8") -> tuple[int, bytes]:
    """Exit status and stderr of a script whose reader has gone before it writes."""
    command = [sys.executable, "-c", f"import sys\nsys.stdin.readline()\n{PROLOGUE}    {body}"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={"PYTHONIOENCODING": f"{encoding}:strict"},
    )  # fmt: skip
    process.stdout.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    said = process.stderr.read()
    return process.wait(), said


@pytest.mark.parametrize(
    "body",
    ["print('x')", "[print('x' * 9999) for _ in range(99)]", "print('x'); sys.exit(0)", "print('x', flush=True)"],
)
def test_a_reader_that_has_gone_ends_a_script_without_a_word(body: str) -> None:
    assert piped(body) == (141, b"")


def test_an_error_is_printed_all_the_same() -> None:
    assert piped("print('x')\n    raise InputError('a.json: is broken')") == (2, b"error: a.json: is broken\n")


def test_a_broken_pipe_of_another_kind_keeps_its_traceback() -> None:
    command = [sys.executable, "-c", f"{PROLOGUE}    raise BrokenPipeError('of a loader')"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr and "of a loader" in done.stderr


OUT_OF_MEMORY = [
    "MemoryError('Unable to allocate 9 GiB for an array')", "OSError(12, 'Cannot allocate memory')",
    "RuntimeError('[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can\\'t allocate memory: x')",
    "RuntimeError('CUDA error: out of memory')", "RuntimeError('cuDNN error: CUDNN_STATUS_ALLOC_FAILED')",
    "RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed. ')",
]  # fmt: skip


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_a_lack_of_memory_is_one_line_with_the_batch_and_a_status_of_its_own(error, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    images = [np.zeros((3, 480, 640)), np.zeros((3, 500, 20))]
    with pytest.raises(SystemExit, match="^6$"), one_line_errors(), naming_batch(images, "lower --batch-size"):
        raise eval(error)
    line = capsys.readouterr().err
    assert line.startswith("error: out of memory at 2 images of up to 500 x 640 pixels; lower --batch-size (")
    assert line.count("\n") == 1


def test_other_errors_are_no_lack_of_memory() -> None:
    for error in (RuntimeError("gloo: connection closed"), OSError(2, "No such file"), ValueError("out of memory")):
        assert not is_out_of_memory(error)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_stdout_cannot_encode_are_escaped(encoding: str) -> None:
    command = [sys.executable, "-c", f"{PROLOGUE}    print('caf\\udce9 \u00e9')"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, env={"PYTHONIOENCODING": f"{encoding}:strict"})
    assert done.returncode == 0 and done.stdout.startswith(b"caf\\udce9 "), done.stderr


def test_a_full_disk_behind_stdout_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-c", f"{PROLOGUE}    print('x')"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2 and done.stderr.startswith(b"error: cannot write the output: No space left")
    assert done.stderr.count(b"\n") == 1
