"""Processes that wait for one another must learn that one of them is gone: each says where it stands, all look.

What a process does is put into the store that the process group met in, once a second, by a thread of its own. A
process that ends otherwise than well says so there; one that stands still is found by the main process; one that is
gone is found by those to whom the connection broke. Whoever waits for it then ends too, and names it.
"""
import json
import os
import socket
import sys
import threading
import time

import torch.distributed as dist

from train_utils.errors import LOST_PROCESS

# What a process does, in the order within a step; the number of steps done comes first.
DOING = ("starting", "writing a checkpoint", "evaluating", "gathering", "loading pictures", "forward", "backward")
INTERVAL = 1.0  # seconds between two signs of life
SILENCE = 5.0  # seconds without one, after a connection broke, that mean death
GRACE = 3.0  # seconds in which a process may still end by an error of its own


class Watchdog(threading.Thread):
    """One process's part.

    Args:
        store: shared by all processes; timeout: seconds after which a process that stands still ends the run.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, timeout: float):
        super().__init__(daemon=True)
        # A client of its own where there are such: another thread may hold the shared one while it waits.
        self.store = dist.PrefixStore("watch", store.clone() if hasattr(store, "clone") else store)
        self.rank, self.world_size, self.timeout = rank, world_size, timeout
        self.interval = INTERVAL * max(1, world_size / 200)
        self.step, self.doing, self.moves, self.beats = 0, "starting", 0, 0
        self.leaving = threading.Event()
        self.last_states: list[list] = [[None] * 7] * world_size
        self.moved_at = [time.monotonic()] * world_size
        self.beaten_at = [time.monotonic()] * world_size
        self.say()

    def report_activity(self, doing: str, step: int | None) -> None:
        """Called where the process goes on: what it begins to do now, one of DOING; a new step, or the same."""
        self.step = self.step if step is None else step
        self.doing, self.moves = doing, self.moves + 1

    def say(self, over: bool = False) -> None:
        self.beats += 1
        state = [self.beats, self.moves, self.step, self.doing, over, socket.gethostname(), os.getpid()]
        self.store.set(str(self.rank), json.dumps(state))

    def read_all(self) -> list[list]:
        return [json.loads(state) for state in self.store.multi_get([str(r) for r in range(self.world_size)])]

    def run(self) -> None:
        try:
            while not self.leaving.wait(self.interval):
                self.say()
                if self.rank < 2:  # one is enough, unless it is the one
                    self.look_for_standstill()
                if self.store.check(["verdict"]) and not self.leaving.wait(GRACE):
                    self.end(self.store.get("verdict").decode())
        except RuntimeError:
            if not self.leaving.wait(SILENCE):
                self.end("the store of the run is gone, and with it the process or machine that held it")

    def look_for_standstill(self) -> None:
        """Once a process stands still for longer than the timeout, blame those furthest behind: the others wait for
        them; and of these those without a sign of life, if there are such."""
        now, states = time.monotonic(), self.read_all()
        for r, (old, new) in enumerate(zip(self.last_states, states)):
            if new[0] != old[0]:
                self.beaten_at[r] = now
            if new[1] != old[1]:
                self.moved_at[r] = now
        self.last_states = states
        running = [r for r, state in enumerate(states) if not state[4] and state[3] != "starting"]
        if any(now - self.moved_at[r] > self.timeout for r in running):
            place = {r: (states[r][2], DOING.index(states[r][3]), now - self.beaten_at[r] < SILENCE) for r in running}
            blamed = [describe(r, states[r]) for r in running if place[r] == min(place.values())]
            self.blame(f"no progress for {self.timeout:.0f} s (--timeout) by {' and '.join(blamed)}")

    def blame(self, verdict: str) -> str:
        """Tell all processes why the run ends; the first word stands. Returns it."""
        return self.store.compare_set("verdict", "", verdict).decode()

    def explain(self) -> str:
        """After a connection broke: who is gone. Takes some seconds."""
        try:
            before, end = self.read_all(), time.monotonic() + SILENCE + self.interval
            while time.monotonic() < end and not self.store.check(["verdict"]):
                time.sleep(self.interval / 4)
            gone = [r for r, (old, new) in enumerate(zip(before, self.read_all())) if old[0] == new[0]]
            named = " and ".join(describe(r, before[r]) for r in gone) or "a process that still lives"
            return self.blame(f"lost the connection to {named}")
        except RuntimeError:
            return "the store of the run is gone, and with it the process or machine that held it"

    def leave(self, verdict: str = "") -> None:
        """This process ends now; with a verdict, the others must too."""
        self.leaving.set()
        self.join(SILENCE)
        try:
            self.say(over=True)
            if verdict:
                self.blame(f"{describe(self.rank, self.read_all()[self.rank])} ended: {verdict}")
        except RuntimeError:
            pass  # the store is gone already; nobody is left to be told

    def end(self, verdict: str) -> None:
        """From the thread, as the main one may be waiting in a collective that never ends."""
        print(said(verdict), file=sys.stderr, flush=True)
        if self.rank == 0:
            time.sleep(GRACE + self.interval)  # the store may be this process's, and the others have to read it
        os._exit(LOST_PROCESS)


def describe(rank: int, state: list) -> str:
    _, _, step, doing, _, host, pid = state
    return f"process {rank} (pid {pid} on {host}, {doing}, step {step})"


def said(verdict: str) -> str:
    return f"stopped: {verdict}; --resume auto goes on from the last checkpoint"


def is_broken_connection(error: BaseException) -> bool:
    """Whether an error of torch means that another process was not there."""
    words = str(error).lower()
    return isinstance(error, dist.DistError) or "gloo" in words or "nccl" in words or "connection" in words
