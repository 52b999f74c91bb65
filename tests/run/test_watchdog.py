"""The watchdog names processes that are gone: on its own machine by their ids, on others by their silence."""

import os
import subprocess
import sys

import pytest
import torch.distributed as dist

from train_utils.run import watchdog
from train_utils.run.watchdog import Watchdog, is_running


@pytest.fixture
def gone() -> int:
    """The id of a process that has ended, and of which its parent has not taken notice."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    yield child.pid
    child.wait()


def group(activity: str = "forward", processes: int = 3) -> list[Watchdog]:
    """The watchdogs of a group in one process; none of their threads runs."""
    store = dist.HashStore()
    dogs = [Watchdog(store, rank, processes, timeout=600) for rank in range(processes)]
    for dog in dogs:
        dog.report_activity(activity, 5)
        dog.send_heartbeat()
    return dogs


def state_with(dog: Watchdog, **changes) -> None:
    """Send a heartbeat as if the process had another id or were on another machine."""
    state = [dog.heartbeats + 1, dog.changes, dog.step, dog.activity, False, "host", os.getpid(), dog.namespace]
    for name, value in changes.items():
        state[{"finished": 4, "pid": 6, "namespace": 7}[name]] = value
    dog.store.set(str(dog.rank), watchdog.json.dumps(state))


def verdict(dog: Watchdog) -> str:
    dog.update_states()
    dog.find_lost()
    return dog.store.get("verdict").decode() if dog.store.check(["verdict"]) else ""


def test_a_process_that_ended_is_not_running_even_if_its_parent_has_not_noticed(gone):
    assert is_running(os.getpid()) is True
    assert is_running(gone) is False
    assert is_running(2**22 + 1) is False  # beyond the largest id


def test_a_process_of_this_machine_that_is_gone_is_named_at_once(gone):
    dogs = group()
    assert verdict(dogs[0]) == ""
    state_with(dogs[2], pid=gone)
    assert verdict(dogs[0]) == f"lost the connection to process 2 (pid {gone} on host, forward, step 5)"


def test_a_process_that_ended_with_a_report_is_not_lost(gone):
    dogs = group()
    state_with(dogs[2], pid=gone, finished=True)
    assert verdict(dogs[0]) == ""


@pytest.mark.parametrize("activity, lost", [("backward", True), ("evaluating", True), ("gathering", False)])
def test_a_process_of_another_machine_is_lost_when_it_is_silent_in_a_step(gone, activity, lost, monkeypatch):
    dogs = group(activity)
    state_with(dogs[2], pid=gone, namespace="another")
    assert verdict(dogs[0]) == ""
    now = watchdog.time.monotonic()
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now + 9)
    for dog in dogs[:2]:
        dog.send_heartbeat()
    found = verdict(dogs[0])
    assert found == (f"lost the connection to process 2 (pid {gone} on host, {activity}, step 5)" if lost else "")


def test_two_processes_of_each_machine_watch():
    dogs = group(processes=8)
    for dog in dogs[4:]:
        state_with(dog, namespace="another")
        dog.namespace = "another"
    for dog in dogs:
        dog.update_states()
    assert [dog.rank for dog in dogs if dog.watches] == [0, 1, 4, 5]
