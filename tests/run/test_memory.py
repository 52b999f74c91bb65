"""Memory of large tensors: a process that keeps what it freed does not get every page from the system again."""

import subprocess
import sys

import pytest

from tests.helpers.project import ROOT
from train_utils import device

TOUCH_TWICE = """
import resource
from train_utils.device import keep_freed_memory
for prepare in (lambda: None, keep_freed_memory):
    prepare()
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        b"x" * (64 << 20)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_kept_for_the_next_tensors():
    run = subprocess.run([sys.executable, "-c", TOUCH_TWICE], cwd=ROOT, capture_output=True, text=True, check=True)
    _, usual, first, second = map(int, run.stdout.split())  # pages from the system for 64 MB
    if usual < 100:
        pytest.skip("this system keeps freed memory by itself")
    assert first > 1000 and second < first / 10


def test_whatever_computes_on_the_cpu_keeps_freed_memory(monkeypatch):
    calls = []
    monkeypatch.setattr(device, "keep_freed_memory", lambda: calls.append("kept"))
    device.choose_device("cpu")
    assert calls == ["kept"]
