import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from flair_jax.runtime import compilation_cache


@pytest.fixture
def unset():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()


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


def test_what_compiles_at_once_is_kept_too(unset, monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    reset_cache()
    compilation_cache.use(str(tmp_path))
    assert jax.jit(lambda x: 3 * x + 1)(jnp.float32(2)) == 7
    assert list(tmp_path.glob("jit__lambda*-cache"))


def test_the_users_own_limit_stays(unset, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
    compilation_cache.use(str(tmp_path))
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 7.0
