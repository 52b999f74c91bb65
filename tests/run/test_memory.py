"""Memory of large tensors: a process that keeps what it freed does not get every page from the system again."""

import subprocess
import sys

import pytest

from tests.helpers.project import ROOT
from train_utils import device

TOUCH_TWICE = """
import resource
from train_utils.device import keep_freed_memory
{prepare}
pages = []
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (64 << 20)
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*pages)
"""


def new_pages(prepare: str) -> list[int]:
    """Pages that a process gets from the system for 64 MB, and for 64 MB again once these are freed."""
    command = [sys.executable, "-c", TOUCH_TWICE.format(prepare=prepare)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [int(number) for number in run.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_kept_for_the_next_tensors():
    first, second = new_pages("keep_freed_memory()")
    assert first > 1000 and second < first / 10
    first, second = new_pages("")  # else this test shows nothing
    if second < first / 10:
        pytest.skip("this system keeps freed memory by itself")


def test_whatever_computes_on_the_cpu_keeps_freed_memory(monkeypatch):
    calls = []
    monkeypatch.setattr(device, "keep_freed_memory", lambda: calls.append("kept"))
    device.choose_device("cpu")
    assert calls == ["kept"]
