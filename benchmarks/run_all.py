"""Run all benchmarks, one after another in separate processes, and write their tables into RESULTS.md.

    python benchmarks/run_all.py                              # an hour on two cores; nothing else should run then
    python benchmarks/run_all.py --only whole_evaluation,start
    python benchmarks/run_all.py --quick --output /tmp/x.md   # the scripts that have --quick, to check that they run

A script's section is enclosed in two comments with its name, and is replaced as a whole; other text stays.
The section is the script's output: tables unchanged, other lines as preformatted text. The section "summary" has the
rows of all sections that have a goal. onnx_parity needs a trained network, such as that of `make demo` in
save_weights/; without it its section is not changed.
"""

import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from datetime import date
from itertools import groupby
from pathlib import Path

from common import PROJECT, parser
from measured_rows import table

from train_utils.errors import InputError, one_line_errors
from train_utils.option_parsing import add_flag

RESULTS = PROJECT / "benchmarks" / "RESULTS.md"
# Section -> script and its arguments, with few rounds where each takes long. Those in QUICK have --quick.
BENCHMARKS = {
    "step_and_inference": ["step_and_inference.py", "--device", "cpu", "--rounds", "3"],
    "step_and_inference_amp": ["step_and_inference.py", "--device", "cpu", "--amp", "--rounds", "3"],
    "whole_evaluation": ["whole_evaluation.py"],
    "start": ["start.py"],
    "scaling": ["scaling.py"],
    "onnx_parity": ["onnx_parity.py"],
    "device_waits": ["device_waits.py", "--batch", "1,2,4,8"],
    "device_waits_amp": ["device_waits.py", "--batch", "1,2,4,8", "--amp"],
    "device_waits_v2": ["device_waits.py", "--batch", "1,2,4,8", "--arch", "v2"],
    "device_waits_v2_sync": ["device_waits.py", "--batch", "1,2,4,8", "--arch", "v2", "--sync-bn"],
    "matching_memory": ["matching_memory.py"],
}
SECTION = re.compile(r"<!-- begin (\w+) -->\n(.*?)<!-- end \1 -->", re.DOTALL)
LAST_COLUMN = ("reached", "held")
SUMMARY = ("part", "goal", "figure", "command", "held")
QUICK = ("whole_evaluation", "start")


def main(args: Namespace) -> int:
    names = list(QUICK if args.quick else BENCHMARKS) if args.only is None else args.only.split(",")
    if unknown := set(names) - set(BENCHMARKS):
        raise InputError(f"--only {','.join(sorted(unknown))}: not among {', '.join(BENCHMARKS)}")
    failed = 0
    for name in names:
        command = [*BENCHMARKS[name], *(["--quick"] if args.quick else [])]
        print(f"python benchmarks/{' '.join(command)}", file=sys.stderr, flush=True)
        script = PROJECT / "benchmarks" / command[0]
        run = subprocess.run([sys.executable, script, *command[1:]], stdout=subprocess.PIPE, text=True)
        if run.returncode:
            print(f"{name}: exit status {run.returncode}, its section is not changed", file=sys.stderr, flush=True)
            failed += 1
            continue
        heading = f"`python benchmarks/{' '.join(command)}`, {date.today()}"
        write_section(Path(args.output), name, f"{heading}\n\n{markdown(run.stdout.splitlines())}")
    write_section(Path(args.output), "summary", summary(Path(args.output).read_text()))
    return 1 if failed else 0


def summary(content: str) -> str:
    """Collect the rows of all tables whose last two columns are the goal and whether it was reached."""
    rows = []
    for name, section in SECTION.findall(content):
        command = section.split(",")[0].strip()
        title = ""
        for cells in ([cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines()):
            if cells and cells[-1] in LAST_COLUMN:
                title = cells[0]
            elif name != "summary" and len(cells) > 2 and cells[-1] in ("yes", "no"):
                rows.append((f"{title}: {cells[0]}", cells[-2], cells[-3], command, cells[-1]))
    return table("part", rows, SUMMARY)


def markdown(lines: Sequence[str]) -> str:
    """Convert a script's output to Markdown: tables stay, the rest becomes preformatted."""
    parts = []
    for block in "\n".join(lines).strip().split("\n\n"):  # tables are separated by blank lines
        kinds = groupby((line for line in block.splitlines() if line.strip()), lambda line: line.startswith("|"))
        for is_table, group in kinds:
            text = "\n".join(group)
            parts.append(text if is_table else f"```\n{text}\n```")
    return "\n\n".join(parts)


def write_section(path: Path, name: str, text: str) -> None:
    """Replace the section of that name in a file, or append it."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    content = path.read_text() if path.exists() else ""
    section = f"{begin}\n{text}\n{end}"
    content, found = re.subn(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: section, content, flags=re.DOTALL)
    if not found:
        title = name.replace("_", " ").capitalize()
        content = f"{content.rstrip()}\n\n## {title}\n\n{section}\n".lstrip()
    path.write_text(content)


def parse_arguments() -> Namespace:
    p = parser(__doc__)
    p.add_argument("--only", help=f"sections, separated by commas: {', '.join(BENCHMARKS)}")
    p.add_argument("--output", default=str(RESULTS), help="file to write to (default: benchmarks/RESULTS.md)")
    add_flag(p, "--quick", "smallest settings; the figures mean nothing")
    return p.parse_args()


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(parse_arguments()))
