import jax
import pytest

from flair_jax import compilation_cache


@pytest.fixture
def unset():
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_default_is_in_the_users_cache_and_private(unset, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation_cache.use("default")
    folder = tmp_path / "flair_jax" / "compiled"
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_none(unset):
    compilation_cache.use("")
    assert jax.config.jax_compilation_cache_dir is None


def test_what_is_set_already_stays(unset, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    compilation_cache.use("default")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")


def test_folder_that_cannot_be_made(unset, tmp_path):
    (tmp_path / "file").write_text("")
    compilation_cache.use(str(tmp_path / "file" / "cache"))
    assert jax.config.jax_compilation_cache_dir is None
