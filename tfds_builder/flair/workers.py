"""Worker processes: how many, and their initialisation."""

import multiprocessing
import os
import signal
import threading


def available_cpus() -> int:
    """Returns the number of CPUs that this process may use, which may be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


def follow_parent() -> None:
    """Ignores Ctrl-C, which the parent handles, and exits when the parent ends or is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
