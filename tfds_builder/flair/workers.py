"""Initialisation of worker processes."""

import multiprocessing
import os
import signal
import threading


def follow_parent() -> None:
    """Ignores Ctrl-C, which the parent handles, and exits when the parent ends or is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
