"""The lock of an output."""

import json
import os
import socket
import subprocess
import sys

import pytest
from etils import epath

from flair_jax.errors import UserError
from flair_jax.inference import job_lock as module
from flair_jax.inference.job_lock import job_lock


@pytest.fixture
def output(tmp_path):
    return epath.Path(tmp_path) / "new folder" / "map.tif"


def held_by(output, **changes):
    """Writes a lock like that of this process, with changes."""
    with job_lock(output):
        path = output.with_name("map.tif.lock")
        holder = json.loads(path.read_text())
    path.write_text(json.dumps(holder | changes))
    return path


def test_a_second_job_is_told_who_holds_the_lock(output):
    with job_lock(output):
        path = output.with_name("map.tif.lock")
        message = (
            rf"another detection writes to this --output: process {os.getpid()} on "
            rf"{socket.gethostname()} since .* holds .*map.tif.lock.*rm '.*new folder/map.tif.lock'"
        )
        with pytest.raises(UserError, match=message), job_lock(output):
            pass
        assert path.exists()
    assert not path.exists()
    with job_lock(output):
        pass


def test_the_lock_is_released_after_an_error(output):
    with pytest.raises(ZeroDivisionError), job_lock(output):
        raise ZeroDivisionError
    assert list(output.parent.iterdir()) == []


def test_the_lock_of_a_dead_process_is_replaced(output, capsys):
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                           capture_output=True, text=True)  # fmt: skip
    held_by(output, pid=int(child.stdout))
    with job_lock(output):
        pass
    assert "which no longer runs" in capsys.readouterr().out
    # The same number, of a process that started at another time.
    held_by(output, process_started=1)
    with job_lock(output):
        pass
    assert list(output.parent.iterdir()) == []


def test_the_lock_of_another_host_is_kept(output):
    path = held_by(output, host="elsewhere", pid=1, process_started=1)
    with pytest.raises(UserError, match="process 1 on elsewhere since"), job_lock(output):
        pass
    assert path.exists()


@pytest.mark.parametrize("content", ["my notes", "", '{"pid": 1}', "[]"])
def test_another_file_of_that_name_is_not_touched(output, content, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0)
    output.parent.mkdir()
    path = output.with_name("map.tif.lock")
    path.write_text(content)
    with pytest.raises(UserError, match=r"map\.tif\.lock is in the way"), job_lock(output):
        pass
    assert path.read_text() == content


def test_a_link_to_nowhere_is_not_waited_for(output, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0)
    output.parent.mkdir()
    os.symlink("nowhere", output.with_name("map.tif.lock"))
    with pytest.raises(UserError, match=r"map\.tif\.lock is in the way"), job_lock(output):
        pass


def test_a_lock_replaced_meanwhile_is_put_back(output, monkeypatch):
    """Between reading a stale lock and removing it, another process may have done both."""
    path = held_by(output, pid=2**22 + 1)
    live = json.loads(path.read_text()) | {"pid": os.getpid()}
    is_dead = module._is_dead

    def meanwhile(holder):
        dead = is_dead(holder)
        path.write_text(json.dumps(live))
        return dead

    monkeypatch.setattr(module, "_is_dead", meanwhile)
    with pytest.raises(UserError, match=f"process {os.getpid()} on"), job_lock(output):
        pass
    assert json.loads(path.read_text()) == live
