"""Signals that ask a run to stop: it finishes its step and writes a checkpoint first."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from train_utils.errors import STOPPED, RunEnded

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]
PASSED_ON = 1.0  # seconds within which a second Ctrl-C is the same one, passed on by a launcher


class StopSignals:
    """Within it SIGTERM, SIGUSR1 and the first Ctrl-C only ask for a stop; the second Ctrl-C stops at once.

    Attributes:
        requested: the signal's name, or "" as long as none came.
    """

    def __init__(self):
        self.requested = ""
        self.came_at = 0.0
        self.nothing_to_save = False

    def __enter__(self) -> "StopSignals":
        self.previous = {number: signal.signal(number, self.receive) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def receive(self, number: int, _frame) -> None:
        now = time.monotonic()
        if self.requested and number == signal.SIGINT and now - self.came_at > PASSED_ON:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested, self.came_at = signal.Signals(number).name, now
        if self.nothing_to_save:
            self.end()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Around work that a resumed run does again: a signal need not wait for its end."""
        self.nothing_to_save = True
        try:
            if self.requested:
                self.end()
            yield
        finally:
            self.nothing_to_save = False

    def end(self) -> None:
        asked = f"by {self.requested}" if self.requested else "as another process was asked to"
        raise RunEnded(f"stopped {asked}, with a checkpoint: --resume auto goes on from there", STOPPED)


def leave_signals_to_the_main_process(_worker: int = 0) -> None:
    """In a loader worker: schedulers signal every process of a job, but only the main one may end the workers."""
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=end_at_the_parents_word, daemon=True).start()


def end_at_the_parents_word() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
