"""A lock file beside an output, so that two jobs do not write to it at the same time.

It is created exclusively (O_EXCL), which network file systems support, and says who holds it. The
lock of a process of this host that no longer runs is replaced.
"""

import contextlib
import datetime
import json
import os
import shlex
import socket
import time
from collections.abc import Iterator
from typing import Any

from etils import epath

from flair_jax.errors import UserError
from flair_jax.runtime import console

_PATIENCE = 2.0  # seconds for another process to complete the file that it has just created


@contextlib.contextmanager
def job_lock(output: epath.Path) -> Iterator[None]:
    """Holds the lock of an output within the `with` block.

    Args:
        output: the file to be written; its folder is created.

    Raises:
        UserError: another job holds the lock, or the file cannot be created.
    """
    path = output.with_name(output.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while not _create(path):
            _remove_stale(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written (--output): {error.strerror}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _create(path: epath.Path) -> bool:
    holder = {
        "written_by": "flair-jax detect",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_started": _start_of(os.getpid()),
        "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(holder, file)
    except OSError:
        path.unlink()
        raise
    return True


def _remove_stale(path: epath.Path) -> None:
    """Removes the lock of a process that no longer runs.

    Raises:
        UserError: it may still run.
    """
    holder = _holder(path)
    if holder is None:
        return
    who = f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"
    if not _is_dead(holder):
        raise UserError(
            f"another detection writes to this --output: {who} holds {path}. Wait for it, or give "
            "another --output. If that process no longer runs, remove the lock: rm "
            f"{shlex.quote(os.fspath(path))}"
        )
    # Renamed first: of several processes that find the stale lock, one succeeds. Should the lock
    # have been replaced since it was read, it is put back.
    moved = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(moved)
        if _holder(moved) != holder and not path.exists():
            moved.rename(path)
        else:
            moved.unlink()
            console.log(f"removed the lock of {who}, which no longer runs")


def _holder(path: epath.Path) -> dict[str, Any] | None:
    """What a lock says of its holder; None if it has been removed.

    Raises:
        UserError: it is another file.
    """
    give_up = time.monotonic() + _PATIENCE
    while True:
        try:
            holder = json.loads(path.read_text())
            if isinstance(holder, dict) and holder.get("written_by") == "flair-jax detect":
                return holder
        except FileNotFoundError:
            if not os.path.islink(path):  # to nowhere
                return None
        except (ValueError, IsADirectoryError):
            pass
        if time.monotonic() > give_up:
            raise UserError(
                f"{path} is in the way: it should be the lock of a detection, and is something "
                "else or incomplete. Remove it if nothing needs it, or give another --output"
            )
        time.sleep(0.1)


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether a lock is of a process of this host that no longer runs."""
    if holder.get("host") != socket.gethostname():
        return False
    pid = holder.get("pid")
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return _start_of(pid) != holder.get("process_started")  # the number may have been used again


def _start_of(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 where there is no /proc."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except OSError:
        return 0
