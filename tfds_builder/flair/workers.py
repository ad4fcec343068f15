"""What every worker process of this machine does first."""

import multiprocessing
import os
import signal
import threading


def follow_parent() -> None:
    """Leaves Ctrl-C to the parent alone, and ends when the parent does, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
