"""Runs of the scripts as processes of their own that start in a second: forked from one that has imported torch.

Faults can be put into them: a `prepare` function runs in the process before the script does, and patches what is to
fail there.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path

from tests.helpers.project import ROOT, importing_tests

Prepare = Callable[[], None]

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.helpers.forked_imports"])


@dataclass
class Run:
    """A started script; `status` is its exit status, negative for a signal's number."""

    process: multiprocessing.Process
    out: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def said(self) -> str:
        return self.out.read_text(errors="replace")

    def alive(self) -> bool:
        return self.process.is_alive()

    def wait(self, seconds: float = 300) -> int:
        self.process.join(seconds)
        if self.process.is_alive():
            self.kill()
            raise TimeoutError(f"still running after {seconds} s:\n{self.said[-3000:]}")
        return self.process.exitcode

    def kill(self) -> None:
        """The script and its loader workers."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.join()


def start(
    script: str,
    arguments: Sequence[str | Path],
    folder: Path,
    prepare: Prepare | None = None,
    variables: Mapping[str, str] | None = None,
    name: str = "out",
    threads: int | None = 1,
) -> Run:
    """Start a script as if in a shell; what it says goes to `folder/{name}.txt`.

    Args:
        threads: that torch computes with; None for as many as a shell would give it.
    """
    out = folder / f"{name}.txt"
    out.unlink(missing_ok=True)
    words = [script, *map(str, arguments)]
    ensure_server()
    arguments = (words, str(folder), str(out), prepare, dict(variables or {}), threads)
    process = context.Process(target=run_script, args=arguments)
    process.start()
    return Run(process, out)


def ensure_server() -> None:
    """The server looks for what it imports in PYTHONPATH alone."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = importing_tests(os.environ)["PYTHONPATH"]
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def start_group(
    processes: int,
    script: str,
    arguments: Sequence[str | Path],
    folder: Path,
    prepare: Mapping[int, Prepare] | None = None,
    threads: int | None = 1,
) -> list[Run]:
    """The same script in several processes, told what torchrun tells them; `prepare` is by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        start(
            script, arguments, folder, (prepare or {}).get(rank),
            common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, f"out{rank}", threads,
        )
        for rank in range(processes)
    ]  # fmt: skip


def run_script(
    words: list[str], folder: str, out: str, prepare: Prepare | None, variables: dict[str, str], threads: int | None
) -> None:
    """In the new process."""
    os.setpgid(0, 0)
    multiprocessing.set_start_method("fork", force=True)  # what loader workers are started by on Linux
    # A forked process starts with its server's signals; a shell's are these.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.chdir(folder)
    os.environ.update(variables)
    sys.argv = words
    status = 0
    try:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        if prepare is not None:
            prepare()
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def processes_of_group(group: int) -> list[int]:
    """A started script's living process, by its pid, and those that it started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, its_group = status.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(int(status.parent.name))
    return found


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"it did not come to pass within {seconds} s")
        time.sleep(0.02)
