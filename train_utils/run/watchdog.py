"""Watchdog for multi-process runs: detects a dead or stalled process, names it, and ends the run.

A thread of each process writes a heartbeat with the current activity into the process group's store once per second, or
the error with which the process ends. Ranks 0 and 1 detect stalled processes. The first two processes of each machine
detect dead processes: on the same machine by process id, elsewhere by missing heartbeats. All this works while main
threads are blocked. Then all processes end with a message that names the dead or stalled one.
"""

import json
import os
import socket
import sys
import threading
import time
import uuid
from pathlib import Path

import torch.distributed as dist

from train_utils.errors import LOST_PROCESS

# Activities in their order within a step. Progress is compared by finished steps first, then by activity.
ACTIVITIES = ("starting", "writing a checkpoint", "evaluating", "gathering", "loading images", "forward", "backward")
INTERVAL = 1.0  # seconds between two heartbeats
HEARTBEAT_TIMEOUT = 5.0  # after a broken connection, a process without a heartbeat for so many seconds is dead
LOST_TIMEOUT = 7.0  # the same before a connection breaks, where process ids cannot be checked
WORKING = ACTIVITIES[4:] + ("evaluating",)  # in the other activities one long call may delay the heartbeat
GRACE = 3.0  # seconds in which a process may still end with its own error
STORE_LOST = "the store of the run is gone, and with it the process or machine that hosted it"


class Watchdog(threading.Thread):
    """Watchdog thread of one process: ends the run if a process dies or makes no progress for `timeout` seconds."""

    def __init__(self, store: dist.Store, rank: int, world_size: int, timeout: float):
        super().__init__(daemon=True)
        # Clone the client if possible: a thread that waits in the shared one blocks it.
        self.store = dist.PrefixStore("watchdog", store.clone() if hasattr(store, "clone") else store)
        self.rank, self.world_size, self.timeout = rank, world_size, timeout
        self.interval = INTERVAL * max(1, world_size / 200)
        self.step, self.activity, self.changes, self.heartbeats = 0, "starting", 0, 0
        self.verdict = ""  # why the run ends, once it is published
        self.leaving = threading.Event()
        self.namespace = process_namespace()
        self.last_states: list[list] = [[None] * 8] * world_size
        self.last_change = [time.monotonic()] * world_size
        self.last_heartbeat = [time.monotonic()] * world_size
        self.watches = True  # until all heartbeats have been read once
        self.send_heartbeat()

    def report_activity(self, activity: str, step: int | None) -> None:
        """Record that an activity, one of ACTIVITIES, begins in `step`; None keeps the previous step."""
        self.step = self.step if step is None else step
        self.activity, self.changes = activity, self.changes + 1

    def send_heartbeat(self, finished: bool = False) -> None:
        self.heartbeats += 1
        progress = [self.heartbeats, self.changes, self.step, self.activity]
        state = [*progress, finished, socket.gethostname(), os.getpid(), self.namespace]
        self.store.set(str(self.rank), json.dumps(state))

    def read_all(self) -> list[list]:
        return [json.loads(state) for state in self.store.multi_get([str(r) for r in range(self.world_size)])]

    def run(self) -> None:
        try:
            while not self.leaving.wait(self.interval):
                self.send_heartbeat()
                if self.watches:
                    self.update_states()
                    self.find_lost()
                if self.rank < 2:  # two processes, as one may be the stalled one
                    self.find_stalled()
                if self.store.check(["verdict"]):
                    self.verdict = self.store.get("verdict").decode()  # before the process that hosts the store ends
                    if not self.leaving.wait(GRACE):
                        self.end(self.verdict)
        except RuntimeError:
            if not self.leaving.wait(HEARTBEAT_TIMEOUT):
                self.end(STORE_LOST)

    def update_states(self) -> None:
        """Read all heartbeats, and record when each process last sent a heartbeat and last made progress."""
        now, states = time.monotonic(), self.read_all()
        for r, (old, new) in enumerate(zip(self.last_states, states)):
            if new[0] != old[0]:
                self.last_heartbeat[r] = now
            if new[1] != old[1]:
                self.last_change[r] = now
        self.last_states = states
        neighbours = [r for r, state in enumerate(states) if state[7] == self.namespace]
        self.watches = self.rank < 2 or self.rank in neighbours[:2]  # two processes, as one may be the dead one

    def find_lost(self) -> None:
        """Blame dead processes: their process id is gone or, where it cannot be checked, their heartbeats stopped."""
        now, patience = time.monotonic(), LOST_TIMEOUT * self.interval
        lost = []
        for r, (_, _, _, activity, finished, _, pid, namespace) in enumerate(self.last_states):
            running = is_running(pid) if namespace == self.namespace else None
            silent = activity in WORKING and now - self.last_heartbeat[r] > patience
            if not finished and (running is False or running is None and silent):
                lost.append(describe(r, self.last_states[r]))
        if lost:
            self.blame(f"lost the connection to {' and '.join(lost)}")

    def find_stalled(self) -> None:
        """If a process has timed out, blame the processes furthest behind, preferring those without a heartbeat."""
        now, states = time.monotonic(), self.last_states
        running = [r for r, state in enumerate(states) if not state[4] and state[3] != "starting"]
        if any(now - self.last_change[r] > self.timeout for r in running):
            position = {
                r: (states[r][2], ACTIVITIES.index(states[r][3]), now - self.last_heartbeat[r] < HEARTBEAT_TIMEOUT)
                for r in running
            }
            blamed = [describe(r, states[r]) for r in running if position[r] == min(position.values())]
            self.blame(f"no progress for {self.timeout:.0f} s (--timeout) by {' and '.join(blamed)}")

    def blame(self, verdict: str) -> str:
        """Publish why the run ends, unless a process has published a verdict already. Return the published verdict."""
        return self.store.compare_set("verdict", "", verdict).decode()

    def explain(self) -> str:
        """After a broken connection, find the process that died, and return the verdict. This takes a few seconds."""
        try:
            before, end = self.read_all(), time.monotonic() + HEARTBEAT_TIMEOUT + self.interval
            while time.monotonic() < end and not self.store.check(["verdict"]):
                time.sleep(self.interval / 4)
            gone = [r for r, (old, new) in enumerate(zip(before, self.read_all())) if old[0] == new[0]]
            named = " and ".join(describe(r, before[r]) for r in gone) or "a process that is still alive"
            return self.blame(f"lost the connection to {named}")
        except RuntimeError:
            return self.verdict or STORE_LOST

    def leave(self, verdict: str = "") -> None:
        """Stop the watchdog, as this process ends. A `verdict`, if given, ends all other processes too."""
        self.leaving.set()
        self.join(HEARTBEAT_TIMEOUT)
        try:
            self.send_heartbeat(finished=True)
            if verdict:
                self.blame(f"{describe(self.rank, self.read_all()[self.rank])} ended: {verdict}")
                end = time.monotonic() + GRACE
                while self.rank == 0 and time.monotonic() < end and not all(state[4] for state in self.read_all()):
                    time.sleep(self.interval / 10)  # it may host the store, and the others must read the verdict
        except RuntimeError:
            pass  # the store is gone, and the verdict with it

    def end(self, verdict: str) -> None:
        """End the process from this thread, as the main thread may be blocked in a collective."""
        message = f"stopped: {verdict}; continue from the last checkpoint with --resume auto"
        print(message, file=sys.stderr, flush=True)
        if self.rank == 0:
            time.sleep(GRACE + self.interval)  # it may host the store, and the others must read the verdict
        os._exit(LOST_PROCESS)


def process_namespace() -> str:
    """Return a name for this machine, boot and container, within which process ids are unique."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        return f"{socket.gethostname()} {uuid.getnode()}"


def is_running(pid: int) -> bool | None:
    """Whether a process of this namespace is running and not a zombie; None if the system has no /proc."""
    if not Path("/proc/self/stat").exists():
        return None  # on Windows os.kill(pid, 0) is not a mere test
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def describe(rank: int, state: list) -> str:
    _, _, step, activity, _, host, pid, _ = state
    return f"process {rank} (pid {pid} on {host}, {activity}, step {step})"


def is_broken_connection(error: BaseException) -> bool:
    """Whether a torch error means that another process could not be reached."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or "gloo" in text or "nccl" in text or "connection" in text
