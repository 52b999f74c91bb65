"""What a run survives, shown at length; the tests hold the same in short.

    python -m tests.programs.reliability --write                  # everything, into docs/RELIABILITY.md; about an hour
    python -m tests.programs.reliability --only kills soak        # some parts, printed
    python -m tests.programs.reliability --thin --kills 4 --steps 100     # a quick try

Parts: `bits` (equal steps and runs, each network, two threads and four), `kills` (SIGKILL at random steps, during
saves, between, and at any moment, in four modes; the real network), `thin` (the same, more often, with a thin one),
`recipes` (the same with large-scale jitter, copy-paste, several batches per step and a cosine schedule),
`hosts` (two hosts, one of which is cut off and killed), `inputs` (what is said to bad input), `fuzz` (readers of files,
given altered and made-up ones), `soak` (memory over many steps). A part that is not run keeps its text in
docs/RELIABILITY.md.
"""

import argparse
import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
from collections import Counter
from pathlib import Path

import torch

from benchmarks.common import machine
from tests.helpers.comparing import differences
from tests.helpers.faults import All, DieAtStep, DieIn, DieWhileSaving, ThinNetwork
from tests.helpers.forked import Run, start, start_group, wait_until
from tests.helpers.fuzzing import MEMORY, SECONDS, examine
from tests.helpers.made_up_files import READERS, lay_out
from tests.helpers.project import ROOT
from tests.programs import bad_inputs
from train_utils.demo_dataset import make_demo_dataset

PAGE = ROOT / "docs" / "RELIABILITY.md"
INTRODUCTION = """# Reliability: what a run survives

A run may be killed at any moment, on any machine, and restarted with the same command. It then continues as if nothing
had happened, or states in one line why it cannot. The tables below show the measurements; in short:

- **Killed.** With `--resume auto` a run continues from its last checkpoint: weights, momentum, results files, log and
  curves at the end are bit for bit those of a run that was never killed. This holds for a kill during a step, while a
  checkpoint is written, and between writing files, with one process and with two, in float32 and with `--amp`.
- **Stopped.** On SIGTERM, SIGUSR1 or Ctrl-C a run finishes its step, writes a checkpoint, and ends with status 3.
- **Another process or host lost.** The remaining processes name the one that is dead or stalled, and end. torchrun
  restarts all processes, and the run continues.
- **Full disk, losses that are not finite, unreadable images.** A checkpoint that does not fit is retried later, a step
  whose loss is not finite is not applied, and an unreadable image is replaced by another. Options limit how often this
  may happen; a run that cannot continue ends with its own exit status ([TRAINING.md](TRAINING.md)).
- **Out of memory.** If the GPU or the machine lacks memory for a step, the run writes a checkpoint of the state before
  that step, if it can. It ends with status 6 and one line that names the step, the batch and the remedies.
- **Bad input.** Faults that would make results wrong stop the run before its first step, with status 2 and a line that
  names file, image and annotation. Harmless faults are dropped, with a warning that counts them. Corrupted and
  malicious files never cause a traceback, a long wait, or the execution of code in them.
- **Memory** does not grow over 2,000 steps.

Besides the seed, the bits of a run depend on the number of threads and processes, the model of the processor or GPU,
and the versions of torch and torchvision. Every checkpoint stores these. If a run is resumed under different ones, it
continues with a one-line warning that its bits may differ. On CUDA, and with three or more processes, equal bits also
require `--deterministic`.

**How to read the tables.** `python -m tests.programs.reliability --write` produces them; `make test-all` runs the same
checks in a shorter form. The runs are those of `train.py` and `train_multi_GPU.py` on the CPU (gloo between processes),
on generated images, with as many threads as the machine has cores. The thin network, where mentioned, is a Mask R-CNN
with a hundredth of the weights. Runs on GPUs, real networks between hosts, and file systems shared by machines were not
measured here.
"""
OPTIONS = ["--device", "cpu", "--data-path", "data", "--min-size", "64", "--max-size", "96", "--rois-per-image", "8"]
OPTIONS += ["--print-freq", "1", "--pretrain", "False", "--lr", "0.01", "--keep", "2", "--resume", "auto"]
RECIPE = ["--data-augmentation", "lsj", "--use-copypaste", "--batch-size", "1", "--accumulate", "2"]
RECIPE += ["--lr-scheduler", "cosineannealinglr"]
TABLE_OF_KILLS = (
    "| mode | killed at a step | while saving | between | at any moment | starts | in the end |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)
PROCESSES = {1: "one process", 2: "two processes"}
BETWEEN = [  # what comes in every epoch, so that none is waited for in vain
    DieIn("dataset_files.atomic_files:os.replace", number=1),
    DieIn("train_utils.run.run_folder:RunFolder.drop_old_checkpoints"),
    DieIn("train_utils.evaluation:detect_all"),
    DieIn("train_utils.run.run_folder:RunFolder.write_results"),
    DieIn("train_utils.run.run_folder:RunFolder.rewrite", after=True),  # while it goes back to the checkpoint
    DieIn("train_utils.run.run_folder:RunFolder.rewrite", after=True, number=3),  # one of two results files is written
    DieIn("train_utils.run.run_folder:RunFolder.write_results", after=True),
    DieIn("train_utils.run.run_folder:plot_map"),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--write", action="store_true", help="into docs/RELIABILITY.md")
    parser.add_argument("--kills", type=int, help="in each mode (default: 10, thin 30)")
    parser.add_argument("--steps", type=int, default=2000, help="of the soak (default: %(default)s)")
    parser.add_argument("--cases", type=int, default=3000, help="for each reader of files (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="when it kills and what it draws (default: %(default)s)")
    parser.add_argument("--thin", action="store_true", help="a thin network in the place of ResNet-50's")
    args = parser.parse_args()
    good = True
    for name in args.only:
        heading, show = PARTS[name]
        folder, started = Path(tempfile.mkdtemp(prefix=f"reliability_{name}_")), time.monotonic()
        try:
            text, held = show(folder, args)
        finally:
            shutil.rmtree(folder)
        good &= held
        minutes = (time.monotonic() - started) / 60
        lines = (line if line.startswith("|") else textwrap.fill(line, 120) for line in text.strip().split("\n"))
        where = f"{time.strftime('%Y-%m-%d')}, {minutes:.1f} minutes on {machine(torch.device('cpu'))}."
        section = f"## {heading}\n\n{chr(10).join(lines)}\n\n{where}\n"
        print(section, flush=True)
        if args.write:
            write_section(heading, section)
    return 0 if good else 1


def write_section(heading: str, section: str) -> None:
    """Put a part into the page in place of its older text, in the order of PARTS, below the introduction."""
    old = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    sections = re.split(r"(?m)^(?=## )", old)[1:]
    by_heading = {text.splitlines()[0].removeprefix("## "): text for text in sections} | {heading: section}
    ordered = [by_heading[name] for name, _ in PARTS.values() if name in by_heading]
    PAGE.write_text("\n".join(part.strip() + "\n" for part in [INTRODUCTION, *ordered]), encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------- bits


def show_bits(folder: Path, args: argparse.Namespace) -> tuple[str, bool]:
    text = "`python -m tests.programs.determinism` computes one step again and again, and two short runs from one "
    text += "seed, with each network, and compares gradients and weights bit for bit.\n\n```\n"
    held = True
    for threads in ("2", "4"):
        command = [sys.executable, "-m", "tests.programs.determinism", "--threads", threads]
        command += ["--networks", "v1", "v2"] if threads == "4" else []
        command += ["--repeats", "3", "--steps", "2", "--networks", "v1"] if args.thin else []
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        held &= done.returncode == 0
        text += done.stdout + (done.stderr if done.returncode else "")
    return text + "```", held


# --------------------------------------------------------------------------------------------------------------- kills


def show_thin_kills(folder: Path, args: argparse.Namespace) -> tuple[str, bool]:
    return show_kills(folder, argparse.Namespace(**vars(args) | {"thin": True}))


def show_kills(folder: Path, args: argparse.Namespace) -> tuple[str, bool]:
    # Four steps an epoch; enough of them that the last kill comes before the end.
    make_demo_dataset(folder / "data", num_train=8, num_val=2)
    kills = args.kills or (30 if args.thin else 10)
    epochs = str(4 + kills)
    network = "the thin network" if args.thin else "the network with a ResNet-50"
    lines = [
        f"A run of {4 * int(epochs)} steps of {network}, with four steps per epoch and a checkpoint after every second "
        f"step, is killed {kills} times by SIGKILL and restarted each time with the same command. At the end it is "
        "compared bit for bit with a run that was never killed: weights, momentum, running means, progress, results "
        f"files, log and curves. Each process has {torch.get_num_threads()} threads; the runs with `--amp` have a "
        "loader worker.",
        "",
        *TABLE_OF_KILLS,
    ]
    held = True
    for processes in (1, 2):
        for amp in (False, True):
            name = f"{'--amp' if amp else 'float32'}, {PROCESSES[processes]}"
            words = ["--epochs", epochs, "--batch-size", str(2 // processes), *(["--amp"] if amp else [])]
            line, equal = row_of_kills(folder, name, [*words, "--workers", str(int(amp))], processes, args, kills)
            lines.append(line)
            held &= equal
    return "\n".join(lines), held


def show_recipe_kills(folder: Path, args: argparse.Namespace) -> tuple[str, bool]:
    kills = args.kills or 30
    network = "the thin network" if args.thin else "the network with a ResNet-50"
    lines = [f"The same for {network} with `{' '.join(RECIPE)}`.", "", *TABLE_OF_KILLS]
    held = True
    for processes in (1, 2):
        place = folder / str(processes)
        make_demo_dataset(place / "data", num_train=8 * processes, num_val=2)  # four steps an epoch
        words = [*RECIPE, "--epochs", str(4 + kills), "--workers", str(2 - processes)]
        line, equal = row_of_kills(place, PROCESSES[processes], words, processes, args, kills)
        lines.append(line)
        held &= equal
    return "\n".join(lines), held


def row_of_kills(
    folder: Path, name: str, words: list[str], processes: int, args: argparse.Namespace, kills: int
) -> tuple[str, bool]:
    """A line of the table; and whether the run was killed as often as asked for, and ended as if it had not been."""
    words = [*OPTIONS, *words, "--checkpoint-every", "2"]
    counts, starts, unlike = killed_run(folder, words, processes, args, kills)
    end = "bit-identical" if not unlike else f"DIFFERS in {', '.join(unlike[:3])}"
    columns = [name, *(counts[kind] for kind in ("step", "save", "between", "any")), starts, end]
    line = f"| {' | '.join(map(str, columns))} |"
    print(line, flush=True)
    for run in ("straight", "killed"):
        shutil.rmtree(folder / run)
    return line, not unlike and sum(counts.values()) == kills


def killed_run(
    folder: Path, words: list[str], processes: int, args: argparse.Namespace, kills: int
) -> tuple[Counter, int, list]:
    """Kill a run at random moments; kills by kind, starts, and where it ends otherwise than an undisturbed one."""
    thin = (ThinNetwork(),) if args.thin else ()
    began = time.monotonic()
    undisturbed = started(folder, [*words, "--output-dir", "straight"], processes, dict.fromkeys(range(2), All(thin)))
    wait_until((folder / "straight" / "log.jsonl").is_file, 600)
    start_takes = time.monotonic() - began
    if any(run.wait(3600) for run in undisturbed):
        raise RuntimeError(undisturbed[0].said)
    epoch_takes = (time.monotonic() - began - start_takes) / (4 + kills)
    size = max(f.stat().st_size for f in (folder / "straight").glob("model_*.pth"))
    draw = random.Random(f"{args.seed} {words}")
    counts, starts = Counter(), 0
    words = [*words, "--output-dir", "killed"]
    while True:
        starts += 1
        kind, fault, victim = "", None, 0
        if sum(counts.values()) < kills:
            kind = draw.choices(["step", "save", "between", "any"], [4, 2, 2, 4])[0]
            victim = draw.randrange(processes) if kind in ("step", "any") else 0
            if kind == "step":
                fault = DieAtStep(draw.randrange(5))
            elif kind == "save":
                fault = DieWhileSaving(draw.randrange(size), draw.randrange(2))
            elif kind == "between":
                fault = draw.choice(BETWEEN)
        faults = {r: All((*thin, fault) if fault and r == victim else thin) for r in range(processes)}
        runs = started(folder, words, processes, faults)
        if kind == "any":  # from outside, to the process itself; its workers are left alone
            runs[victim].process.join(draw.uniform(0.3 * start_takes, start_takes + epoch_takes))
            os.kill(runs[victim].pid, signal.SIGKILL)
        status = runs[victim].wait(3600)
        for other in runs:
            if kind:
                other.kill()  # as torchrun would
            elif other.wait(3600):
                raise RuntimeError(other.said)
        if not kind:
            return counts, starts, differences(folder / "killed", folder / "straight")
        if status != -signal.SIGKILL:
            raise RuntimeError(f"{fault}: ended with {status}\n{runs[victim].said}")
        counts[kind] += 1


def started(folder: Path, words: list[str], processes: int, prepare: dict[int, All]) -> list[Run]:
    if processes == 1:
        return [start("train.py", words, folder, prepare[0], threads=None)]
    return start_group(processes, "train_multi_GPU.py", words, folder, prepare, threads=None)


# --------------------------------------------------------------------------------------------------------------- hosts


def show_hosts(folder: Path, args: argparse.Namespace) -> tuple[str, bool]:
    command = [sys.executable, "-m", "tests.programs.two_hosts", *(["--thin"] if args.thin else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    skipped = done.returncode == 77
    text = "Two network namespaces on one machine, two processes in each, started by torchrun with `--max-restarts`; "
    text += "BatchNorm is frozen. `python -m tests.programs.two_hosts` prints:\n\n"
    text += f"```\n{re.sub(r'pid [0-9]+', 'pid ...', done.stdout).strip()}\n```"
    failed = done.returncode != 0 and not skipped
    return text + (f"\n\n{done.stderr.strip()}" if failed else ""), not failed


# -------------------------------------------------------------------------------------------------------------- inputs


def show_inputs(folder: Path, args: argparse.Namespace) -> tuple[str, bool]:
    command = [sys.executable, "-m", "tests.programs.bad_inputs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    failed = done.returncode != 0
    said = "not all end as expected" if failed else "all end as expected"
    text = "`python -m tests.programs.bad_inputs` starts a run on each of these inputs and checks how it ends; "
    text += f"{said}.\n\n"
    return text + done.stdout.strip() + (f"\n\n{done.stderr.strip()[-2000:]}" if failed else ""), not failed


# ------------------------------------------------------------------------------------------------------------- exports


def show_exports(folder: Path, args: argparse.Namespace) -> tuple[str, bool]:
    """The cases of bad_inputs.py that are named "export", beside what was said before these were repaired."""
    before = json.loads((ROOT / "tests" / "programs" / "exports_before.json").read_text(encoding="utf-8"))
    lines = [
        "Typical flaws in the exports of labelling tools, each in an otherwise valid dataset: how a run ended at "
        "commit 2a96f12, and how it ends now.",
        "",
        "| input | before | now |",
        "| --- | --- | --- |",
    ]
    held = True
    for number, case in enumerate(case for case in bad_inputs.CASES if case.name.startswith("export: ")):
        place = folder / str(number)
        place.mkdir()
        outcome = bad_inputs.run(case, place.resolve())
        held &= not bad_inputs.faults_of(outcome, case)
        said = outcome.said.replace(f"{place.resolve()}/", "")
        said = said.replace("data/annotations/instances_train2017.json: ", "")
        name = case.name.removeprefix("export: ")
        cells = [name, before[name], f"exit {outcome.code}: {said[:200] or 'no message'}"]
        lines.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines), held


# ---------------------------------------------------------------------------------------------------------------- fuzz


def show_fuzz(folder: Path, args: argparse.Namespace) -> tuple[str, bool]:
    lines = [
        "Valid files with changes to values or bytes in one to three places, and files generated from the grammar of "
        "their format, drawn by hypothesis. Each is read, or refused with one line that names it, within "
        f"{SECONDS} s and {MEMORY >> 20} MiB. There is no other exception; no code in a file is run; and no file is "
        "written or deleted and no connection opened, as Python's audit events show.",
        "",
        "| reader | cases | accepted | refused |",
        "| --- | --- | --- | --- |",
    ]
    total: Counter = Counter()
    held = True
    for number, reader in enumerate(READERS):
        lay_out(folder / str(number))
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # warnings about what is read all the same
                counts = examine(reader, folder / str(number), args.cases, args.seed)
        except BaseException as error:  # a hang, a flaw of the reader, or several of them
            if isinstance(error, KeyboardInterrupt):
                raise
            traceback.print_exc()
            lines.append(f"| {reader.name} | FAILS: {type(error).__name__} | | |")
            held = False
            continue
        total += counts
        lines.append(f"| {reader.name} | {counts.total()} | {counts['accepted']} | {counts['refused']} |")
    lines.append(f"| all | {total.total()} | {total['accepted']} | {total['refused']} |")
    return "\n".join(lines), held


# ---------------------------------------------------------------------------------------------------------------- soak


def show_soak(folder: Path, args: argparse.Namespace) -> tuple[str, bool]:
    make_demo_dataset(folder / "data", num_train=8, num_val=2)
    repeat_pictures(folder / "data" / "annotations" / "instances_train2017.json", args.steps * 2)
    words = [*OPTIONS, "--epochs", "1", "--batch-size", "2", "--workers", "2", "--checkpoint-every", "200"]
    run = start("train.py", [*words, "--output-dir", "soak"], folder, ThinNetwork())
    log, seen = folder / "soak" / "log.jsonl", []
    while run.alive():
        step = len(log.read_text().splitlines()) if log.is_file() else 0
        memory = [resident(run.pid), *map(resident, children(run.pid))]
        if step and len(memory) == 3 and all(memory):
            seen.append((step, memory[0], sum(memory[1:]) / 2))
        time.sleep(0.5)
    if run.wait():
        raise RuntimeError(run.said)
    lines = [
        f"{args.steps} steps in one epoch with two loader workers and a checkpoint after every 200 steps. The network "
        "is thin, so that a leak would be visible. Resident memory in MiB:",
        "",
        "| after step | main process | each worker |",
        "| --- | --- | --- |",
    ]
    marks = [args.steps * i // 8 for i in range(1, 9)]
    rows = [min(seen, key=lambda s: abs(s[0] - mark)) for mark in marks]
    lines += [f"| {step} | {main:.0f} | {worker:.0f} |" for step, main, worker in rows]
    growth = [rows[-1][i] - rows[1][i] for i in (1, 2)]
    flat = max(growth) < 32
    change = f"{growth[0]:+.0f} MiB, and {growth[1]:+.0f} MiB per worker"
    lines += ["", f"Change between a quarter of the run and its end: {change}."]
    return "\n".join(lines), flat


def repeat_pictures(file: Path, number: int) -> None:
    """Make a data set of that many pictures out of a few files."""
    content = json.loads(file.read_text())
    images, annotations = content["images"], content["annotations"]
    content["images"], content["annotations"] = [], []
    for i in range(number):
        image = images[i % len(images)]
        content["images"].append(image | {"id": i + 1})
        for annotation in (a for a in annotations if a["image_id"] == image["id"]):
            content["annotations"].append(annotation | {"id": len(content["annotations"]) + 1, "image_id": i + 1})
    file.write_text(json.dumps(content))


def resident(pid: int) -> float:
    """MiB; 0 if the process is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


PARTS = {
    "bits": ("Equal bits", show_bits),
    "kills": ("Killed and resumed", show_kills),
    "thin": ("Killed and resumed, more often", show_thin_kills),
    "recipes": ("Killed and resumed, with other options", show_recipe_kills),
    "hosts": ("Two hosts, one lost", show_hosts),
    "inputs": ("Bad input", show_inputs),
    "exports": ("Exports of labelling tools, before and after", show_exports),
    "fuzz": ("Files altered and made up", show_fuzz),
    "soak": ("Memory", show_soak),
}

if __name__ == "__main__":
    sys.exit(main())
