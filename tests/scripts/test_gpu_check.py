"""The program that checks the project on a GPU runs on the CPU from end to end, and its comparisons hold there."""

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.commands import run, started
from tests.helpers.project import ROOT

COMPARISONS = {"parts", "parity", "precision", "nccl", "resume"}
PARTS = COMPARISONS | {"facts", "waits", "training", "inference", "loading", "whole", "profile"}


@pytest.mark.long
def test_every_part_runs_and_what_is_compared_agrees(tmp_path: Path):
    script = str(ROOT / "benchmarks" / "gpu_check.py")
    words = ["--out", "out", "--device", "cpu", "--small", "--patience", "10"]
    done = started([sys.executable, script, *words], tmp_path)
    rows = json.loads((tmp_path / "out" / "result.json").read_text())
    broken = [row for row in rows if row["check"].startswith(("ended with", "stopped after"))]
    assert not broken and "Traceback" not in done.err, (broken, done.err[-2000:])
    assert {row["part"] for row in rows} == PARTS
    wrong = [row for row in rows if row["part"] in COMPARISONS and row["held"] is False]
    assert not wrong
    assert {row["part"] for row in rows if row["held"]} >= COMPARISONS
    assert all(f"| {row['part']} | {row['check']} |" in done.out for row in rows)
    assert done.code == (1 if any(row["held"] is False for row in rows) else 0)


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    done = run(tmp_path, "benchmarks/gpu_check.py", "--out", "out")
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code == 2 and len(errors) == 1 and "no CUDA device" in errors[0]
    assert not (tmp_path / "out").exists()
