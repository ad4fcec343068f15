"""Preemption: SIGTERM and Ctrl-C are recorded, so that a loop can save its state and end."""

import signal
import threading
from types import FrameType
from typing import Self


class Preempted(Exception):
    """A signal asked to stop, and the state is saved; the message tells what was saved."""


class StopSignals:
    """Records SIGTERM and SIGINT within a `with` block; a second signal ends the program.

    Attributes:
        received: name of the signal that was received, or "".
    """

    _NUMBERS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.received = ""

    def __enter__(self) -> Self:
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids it
            self._before = {n: signal.signal(n, self._record) for n in self._NUMBERS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _record(self, number: int, _: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
