import importlib.util

import pytest

from flair_jax.errors import UserError
from flair_jax.runtime import storage


def test_local_paths_are_taken_as_they_are(tmp_path):
    for path in ("", "runs/baseline", tmp_path, "/data/none"):
        assert not storage.is_remote(path)
        storage.check_reachable(path, "--workdir")


def test_of_remote_storage_only_gs_is_known():
    with pytest.raises(UserError, match=r"--workdir=s3://bucket/run: .* only gs:// .* Mount it"):
        storage.check_reachable("s3://bucket/run", "--workdir")


def test_gcsfs_is_asked_for(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"config.data_dir=gs://bucket needs gcsfs.*\.\[gcs\]"):
        storage.check_reachable("gs://bucket", "config.data_dir")


def test_what_the_client_says_is_passed_on(monkeypatch):
    class Unreachable:
        def __init__(self, path):
            pass

        def exists(self):
            raise RuntimeError("no such bucket")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(storage.epath, "Path", Unreachable)
    with pytest.raises(UserError, match=r"cannot be reached \(no such bucket\): check the name"):
        storage.check_reachable("gs://bucket", "config.data_dir")
