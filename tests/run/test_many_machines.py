"""A launcher that is told to stop, processes without a picture, and two hosts of which one is lost."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.run import get_args_parser

from tests.helpers.faults import ThinNetwork
from tests.helpers.forked import start, start_group, wait_until
from tests.helpers.project import ROOT, importing_tests
from train_utils.demo_dataset import make_demo_dataset

pytestmark = pytest.mark.slow

OPTIONS = ["--device", "cpu", "--data-path", "data", "--min-size", "32", "--max-size", "48", "--rois-per-image", "8"]
OPTIONS += ["--batch-size", "2", "--workers", "0", "--print-freq", "1", "--pretrain", "False", "--lr", "0.01"]
# As the README has it for schedulers that send SIGUSR1; without it that signal ends the launcher alone.
HANDLED = "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("machines")
    make_demo_dataset(folder / "data", num_train=8, num_val=2)
    return folder


NEW_TORCHRUN = "--signals-to-handle" in get_args_parser().format_help()  # 2.11 has it, 2.4 does not


@pytest.mark.skipif(not NEW_TORCHRUN, reason="this release of torchrun does not know --signals-to-handle")
@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_launcher_that_is_told_to_stop_waits_for_the_checkpoint_and_starts_nothing_again(lab, number):
    folder = lab / signal.Signals(number).name
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=3"]
    command += [HANDLED, "-m", "tests.programs.with_fault", "train_multi_GPU.py", *OPTIONS, "--epochs", "500"]
    command += ["--output-dir", str(folder), "--resume", "auto"]
    variables = importing_tests(os.environ) | {"THIN": "1", "OMP_NUM_THREADS": "1"}
    with open(lab / "said.txt", "w+") as said:
        job = subprocess.Popen(command, cwd=lab, env=variables, stdout=said, stderr=said, start_new_session=True)
        try:
            wait_until(lambda: (folder / "log.jsonl").exists() or job.poll() is not None, 200)
            # A scheduler and a terminal signal all processes of a job; the launcher passes on what it gets.
            os.kill(job.pid, number) if number == signal.SIGTERM else os.killpg(job.pid, number)
            assert job.wait(60) != 0
        finally:
            if job.poll() is None:  # the launcher ends its processes, which are in sessions of their own
                job.terminate()
                job.wait(60)
        said.seek(0)
        text = said.read()
    assert f"stopped by {signal.Signals(number).name}" in text and "resuming from" not in text, text[-3000:]
    newest = max(folder.glob("model_*.pth"), key=lambda file: file.stat().st_mtime)
    step = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["step"]
    assert torch.load(newest, weights_only=True)["progress"]["step"] == step


@pytest.mark.parametrize("pictures", [1, 2])
def test_validation_in_more_processes_than_pictures_and_uneven_shares_gives_the_same_numbers(lab, pictures):
    make_demo_dataset(lab / f"data_{pictures}", num_train=2, num_val=pictures)
    words = [*OPTIONS, "--data-path", f"data_{pictures}", "--output-dir", f"run_{pictures}", "--max-steps", "1"]
    assert start("train.py", words, lab, ThinNetwork()).wait() == 0
    validate = ["--device", "cpu", "--workers", "0", "--weights-path", f"run_{pictures}/model_0.pth"]
    texts = []
    for processes in (1, 3):
        folder = lab / f"by_{processes}_{pictures}"
        runs = start_group(processes, "validation.py", [*validate, "--output-dir", folder.name], lab,
                           dict.fromkeys(range(processes), ThinNetwork()))  # fmt: skip
        assert [run.wait(60) for run in runs] == [0] * processes, runs[0].said
        texts.append((folder / "record_mAP.txt").read_text())
    assert f"{pictures} images" in texts[0] and texts[0] == texts[1]


@pytest.mark.long
@pytest.mark.skipif(
    not NEW_TORCHRUN, reason="this release of torchrun reaches a host by its name, and both have one name"
)
def test_run_over_two_hosts_survives_the_loss_of_one_and_ends_as_on_one_host():
    script = [sys.executable, "-m", "tests.programs.two_hosts", "--thin", "--epochs", "2", "--pictures", "8"]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert re.search(r"first says: stopped: no progress for 10 s \(--timeout\) by process [23] \(pid", done.stdout)
