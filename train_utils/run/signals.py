"""Handle signals that ask a run to stop: it finishes its step and writes a checkpoint first."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from train_utils.errors import STOPPED, RunEnded

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]
FORWARDED_WITHIN = 1.0  # seconds in which a second Ctrl-C is taken for the first one, forwarded by a launcher


class StopSignals:
    """Context in which SIGTERM, SIGUSR1 and the first Ctrl-C only request a stop; the second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.requested = ""  # the name of the received signal
        self.received_at, self.nothing_to_save = 0.0, False

    def __enter__(self) -> "StopSignals":
        self.previous = {number: signal.signal(number, self.receive) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def receive(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested and number == signal.SIGINT and now - self.received_at > FORWARDED_WITHIN:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested, self.received_at = signal.Signals(number).name, now
        if self.nothing_to_save:
            self.end()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Context for work that a resumed run repeats anyway: a stop signal ends the run immediately."""
        self.nothing_to_save = True
        try:
            if self.requested:
                self.end()
            yield
        finally:
            self.nothing_to_save = False

    def end(self) -> None:
        reason = f"by {self.requested}" if self.requested else "by a signal to another process"
        raise RunEnded(f"stopped {reason} after writing a checkpoint; continue with --resume auto", STOPPED)


def leave_signals_to_the_main_process(_worker: int = 0) -> None:
    """Make a loader worker ignore all stop signals but its parent's SIGTERM: schedulers signal every process."""

    def end_when_the_parent_signals() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=end_when_the_parent_signals, daemon=True).start()
