"""SIGTERM and Ctrl-C while training or detecting: noted, so that the loop can save and end."""

import signal
import threading
from types import FrameType
from typing import Self


class Interrupted(Exception):
    """The work was asked to stop, and has saved its state; the message says what and where."""


class StopSignals:
    """Notes SIGTERM and SIGINT in a `with` block; a second signal ends the program at once.

    Attributes:
        received: name of the signal that asked for an end, or "".
    """

    _NUMBERS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.received = ""

    def __enter__(self) -> Self:
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids it
            self._before = {n: signal.signal(n, self._note) for n in self._NUMBERS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
