import dataclasses
import errno
import json
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from damage import KINDS, damage, files, flip_in_the_middle, halve, largest_file
from etils import epath

from flair_jax.errors import UserError
from flair_jax.inference import loading
from flair_jax.inference.loading import DamagedError, OutOfReachError
from flair_jax.runtime.sharding import make_mesh, replicate
from flair_jax.training import checkpoints as module
from flair_jax.training.checkpoints import Checkpoints
from flair_jax.training.schedules import Best, PlateauState, Progress
from flair_jax.training.state import TrainState, create_train_state

# With a state of some arrays, large and small, as recipes other than the default have.
OPTIMIZER = optax.inject_hyperparams(optax.sgd, hyperparam_dtype=jnp.float32)(
    learning_rate=0.5, momentum=0.9
)
SAVED = (1, 2, 3, 4, 5, 6)
BEST = Best(2, 1, 0.5)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(loading, "WAITS", (0.0, 0.0))


@pytest.fixture(scope="module")
def mesh():
    return make_mesh()


@pytest.fixture(scope="module")
def state(mesh):
    """As of a model with 3 large arrays and some small ones, and their moving average."""
    rng = np.random.default_rng(0)
    params = {f"large{i}": rng.normal(size=(64, 16, 100)).astype(np.float32) for i in range(3)}
    params |= {f"small{i}": rng.normal(size=8).astype(np.float32) for i in range(5)}
    batch_stats = {"mean": jnp.ones(8)}
    return replicate(create_train_state(params, batch_stats, OPTIMIZER, ema=True), mesh)


def at_step(state, step):
    add = {k: v + step for k, v in state.params.items()}
    return dataclasses.replace(
        state,
        step=jnp.int32(step),
        params=add,
        opt_state=jax.tree.map(lambda x: x + jnp.asarray(step, x.dtype), state.opt_state),
        ema={k: v - step for k, v in state.ema.items()},
    )


def progress_at(step, best=BEST):
    best = best if best and best.step <= step else None
    return Progress(step // 2, 0.25 * step, PlateauState(step / 100), best)


def save_steps(folder, state, steps=SAVED, best=BEST, **options):
    checkpoints = Checkpoints(folder, **options)
    for step in steps:
        checkpoints.save(at_step(state, step), progress_at(step, best))
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, state):
    """Checkpoints of six steps, of which the latest two and the best are kept."""
    return save_steps(tmp_path_factory.mktemp("run") / "checkpoints", state)


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "run" / "checkpoints")


def saved(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.is_dir())


def restore(folder, state, mesh):
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore_newest(state, mesh)
    finally:
        checkpoints._checkpointer.close()


def assert_is_step(restored, state, step, best=BEST):
    assert int(restored.state.step) == step
    assert restored.progress == progress_at(step, best)
    wanted = at_step(state, step)
    assert jax.tree.structure(restored.state) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, restored.state, wanted)


def test_the_latest_and_the_best_are_kept(folder):
    assert saved(folder) == [2, 5, 6]
    assert loading.best_step(folder) == 2
    assert loading.saved_steps(folder) == [2, 5, 6]


def test_everything_comes_back(folder, state, mesh):
    restored = restore(folder, state, mesh)
    assert_is_step(restored, state, 6)
    assert (restored.messages, restored.damaged) == ([], [])
    assert all(p.sharding.mesh == mesh for p in restored.state.params.values())


def test_nothing_was_saved(tmp_path, state, mesh):
    assert restore(tmp_path / "checkpoints", state, mesh) is None
    assert loading.best_step(tmp_path / "checkpoints") is None


def kinds_of_files(folder):
    """Of the newest step one file of each kind: by its name, or by its folder if that is a hash."""
    found = {}
    for path in files(folder / "6"):
        name = path.relative_to(folder / "6")
        kind = (name.parts[0], name.parent if len(name.name) == 32 else name.name, len(name.parts))
        larger = kind not in found or path.stat().st_size > found[kind].stat().st_size
        if larger:
            found[kind] = path
    return list(found.values())


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_seen_in_each_kind_of_file(copied, state, mesh, kind):
    """What was saved comes back to the bit, or the step before, with a message; nothing else."""
    chosen = kinds_of_files(copied)
    assert len(chosen) >= 12
    seen = []
    for path in chosen:
        for seed in range(3 if kind == "flipped_bit" else 1):
            content = damage(path, kind, seed)
            restored = restore(copied, state, mesh)
            if restored.messages:
                assert_is_step(restored, state, 5)
                assert restored.damaged == [6]
                assert restored.messages[0].startswith(f"{copied.resolve() / '6'} is damaged: ")
                assert "Traceback" not in restored.messages[0]
                seen.append(path.relative_to(copied / "6").parts[0])
            else:
                assert_is_step(restored, state, 6)
            path.write_bytes(content)
    assert {"model", "optimizer", "average", "progress"} <= set(seen)
    restored = restore(copied, state, mesh)
    assert_is_step(restored, state, 6)


def test_orbax_alone_does_not_see_a_flipped_bit(copied, state):
    """The reason for the checksums; if this fails, Orbax has its own."""
    flip_in_the_middle(largest_file(copied / "6" / "model"))
    item = loading.model_item(state.params, state.batch_stats)
    loading.read_arrays(copied / "6", "model", item, checksum=None)
    with pytest.raises(DamagedError, match="their CRC differs"):
        loading.read_arrays(copied / "6", "model", item, checksum=1)


def test_a_damaged_step_is_quarantined(copied, state, mesh):
    for again in ("", "-1"):
        halve(largest_file(copied / "6" / "model"))
        checkpoints = Checkpoints(copied)
        restored = checkpoints.restore_newest(state, mesh)
        checkpoints.quarantine(restored.damaged)
        assert checkpoints.latest() == 5
        assert (copied.parent / "damaged_checkpoints" / f"6{again}").is_dir()
        checkpoints.save(at_step(state, 6), progress_at(6))
        checkpoints.close()
        assert saved(copied) == [2, 5, 6]


def test_nothing_intact_is_not_a_fresh_start(copied, state, mesh):
    for step in (2, 5, 6):
        halve(largest_file(copied / str(step) / "model"))
    with pytest.raises(UserError, match="No checkpoint of this run can be restored") as caught:
        restore(copied, state, mesh)
    assert str(caught.value).count("is damaged") == 3


def test_a_damaged_best_step_that_is_the_newest_is_made_again(tmp_path, state, mesh):
    best = Best(6, 3, 0.25)
    folder = save_steps(tmp_path / "checkpoints", state, best=best)
    flip_in_the_middle(largest_file(folder / "6" / "model"))
    restored = restore(folder, state, mesh)
    assert_is_step(restored, state, 5, best)
    assert restored.progress.best is None


@pytest.mark.parametrize("kind", ["cut", "missing"])
def test_a_damaged_best_step_is_made_again_from_one_before_it(tmp_path, state, mesh, kind):
    best = Best(4, 2, 0.25)
    folder = save_steps(tmp_path / "checkpoints", state, best=best, max_to_keep=4)
    assert saved(folder) == [3, 4, 5, 6]
    halve(largest_file(folder / "4" / "model"))
    if kind == "missing":
        shutil.rmtree(folder / "4")
    restored = restore(folder, state, mesh)
    assert_is_step(restored, state, 3, best)
    assert "It is the best checkpoint so far: training resumes before it" in restored.messages[-1]
    assert restored.damaged == [step for step in (4, 5, 6) if (folder / str(step)).exists()]


@pytest.mark.parametrize("kind", ["flipped_bit", "missing"])
def test_a_best_step_that_cannot_be_made_again_is_told(copied, state, mesh, kind):
    if kind == "missing":
        shutil.rmtree(copied / "2")
    else:
        flip_in_the_middle(largest_file(copied / "2" / "model"))
    restored = restore(copied, state, mesh)
    assert_is_step(restored, state, 6)
    assert "no older one is left: it cannot be made again" in restored.messages[-1]
    assert restored.damaged == ([2] if kind == "flipped_bit" else [])
    assert loading.best_step(copied) == 2  # not another one in its place


def test_equal_values_keep_the_first(tmp_path, state):
    checkpoints = Checkpoints(tmp_path / "checkpoints", max_to_keep=2)
    best = Best(1, 1, 1.0)
    for step in (1, 2, 3, 4):
        checkpoints.save(at_step(state, step), dataclasses.replace(progress_at(step), best=best))
    checkpoints.close()
    assert saved(tmp_path / "checkpoints") == [1, 3, 4]
    assert loading.best_step(tmp_path / "checkpoints") == 1


class Failing:
    """Fails some reads, then passes on; counts them."""

    def __init__(self, action, error, times):
        self.action, self.error, self.times, self.calls = action, error, times, 0

    def __call__(self, *args, **options):
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return self.action(*args, **options)


ERRORS = [
    OSError(errno.ETIMEDOUT, "Connection timed out"),
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    OSError(errno.EIO, "Input/output error"),
    Exception("Error reading: UNAVAILABLE: all retries failed"),
    ValueError("PERMISSION_DENIED: Error opening file [OS error 13: EACCES Permission denied]"),
]


@pytest.mark.parametrize("error", [*ERRORS, Exception("something that passes")], ids=repr)
@pytest.mark.parametrize("name", ["_read_record", "_read_arrays"])
def test_an_error_that_passes_costs_nothing(folder, state, mesh, monkeypatch, name, error):
    failing = Failing(getattr(loading, name), error, times=2)
    monkeypatch.setattr(loading, name, failing)
    restored = restore(folder, state, mesh)
    assert_is_step(restored, state, 6)
    assert restored.messages == []


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_storage_that_stays_out_of_reach_is_not_damage(copied, state, mesh, monkeypatch, error):
    monkeypatch.setattr(loading, "_read_arrays", Failing(loading._read_arrays, error, times=99))
    with pytest.raises(OutOfReachError, match=r"checkpoints/6 cannot be read: .*\nIt may be"):
        restore(copied, state, mesh)
    assert saved(copied) == [2, 5, 6]


def test_a_file_that_cannot_be_read_is_not_damage(copied, state, mesh, monkeypatch):
    """Orbax may hide the cause: then the files are read."""
    monkeypatch.setattr(
        loading, "_read_arrays", Failing(loading._read_arrays, Exception("whatever"), times=99)
    )
    monkeypatch.setattr(loading, "_can_be_read", lambda path: False)
    with pytest.raises(OutOfReachError):
        restore(copied, state, mesh)


def test_a_folder_named_like_an_error_is_still_damaged(tmp_path, state, mesh):
    folder = save_steps(tmp_path / "connection timed out" / "checkpoints", state, (1, 2), None)
    halve(largest_file(folder / "2" / "model"))
    assert_is_step(restore(folder, state, mesh), state, 1, None)


@pytest.mark.parametrize(
    ("own", "largest", "expected"),
    [(0, 1, "damaged on another process"), (0, 2, None), (1, 2, None)],
)
def test_processes_agree(copied, state, mesh, monkeypatch, own, largest, expected):
    """What one process cannot read, none resumes from."""
    if own:
        halve(largest_file(copied / "6" / "model"))
    verdicts = iter([largest, 0, 0])
    monkeypatch.setattr(module, "largest", lambda verdict: next(verdicts))
    if expected is None:
        with pytest.raises(OutOfReachError):
            restore(copied, state, mesh)
    else:
        restored = restore(copied, state, mesh)
        assert_is_step(restored, state, 5)
        assert expected in restored.messages[0]


def test_a_step_that_is_saved_again_is_replaced(copied, state, mesh):
    checkpoints = Checkpoints(copied)
    best = Best(6, 3, 0.25)
    checkpoints.save(at_step(state, 6), progress_at(6, best))
    checkpoints.close()
    assert loading.best_step(copied) == 6
    assert_is_step(restore(copied, state, mesh), state, 6, best)


def test_the_best_step_is_not_deleted_after_a_resume(copied, state, mesh):
    checkpoints = Checkpoints(copied)
    checkpoints.restore_newest(state, mesh)
    for step in (7, 8):
        checkpoints.save(at_step(state, step), progress_at(step))
    checkpoints.close()
    assert saved(copied) == [2, 7, 8]


def test_what_an_interrupted_save_has_left_is_removed(copied, state):
    left = copied / "7.orbax-checkpoint-tmp"
    shutil.copytree(copied / "6", left)
    assert loading.saved_steps(copied) == [2, 5, 6]
    Checkpoints(copied).close()
    assert not left.exists()


def test_a_leftover_that_cannot_be_removed_is_replaced_by_the_next_save(copied, state, monkeypatch):
    """As of a save that has failed in this process, while some of its threads still write."""
    left = copied / "7.orbax-checkpoint-tmp"
    left.mkdir()
    with monkeypatch.context() as patch:

        def refuse(path):
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

        patch.setattr(type(epath.Path(copied)), "rmtree", refuse)
        checkpoints = Checkpoints(copied)
    assert left.exists()
    assert checkpoints.steps() == [2, 5, 6]
    checkpoints.save(at_step(state, 7), progress_at(7))
    checkpoints.close()
    assert not left.exists()
    assert checkpoints.latest() == 7


def test_a_full_disk_leaves_the_earlier_checkpoints(copied, state, mesh):
    """A limit on the size of files stands in for the disk: both refuse a write."""
    checkpoints = Checkpoints(copied)
    checkpoints.restore_newest(state, mesh)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        checkpoints.save(at_step(state, 7), progress_at(7))
        with pytest.raises(UserError, match="could not be written") as caught:
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "Complete checkpoints there: 2, 5, 6." in str(caught.value)
    assert_is_step(restore(copied, state, mesh), state, 6)


def test_a_record_of_other_shapes(copied, state, mesh):
    other = dataclasses.replace(state, params=state.params | {"small0": jnp.zeros(9)})
    with pytest.raises(
        UserError, match=r"small0 has the shape \(8,\) in model/, and \(9,\) in the model"
    ):
        restore(copied, other, mesh)


def test_checksums_are_of_what_is_saved(folder, state):
    record = json.loads((folder / "6" / "progress" / "metadata").read_text())
    assert record["monitor"] == "val_loss"
    wanted = at_step(state, 6)
    item = loading.model_item(wanted.params, wanted.batch_stats)
    assert record["checksums"] == {
        "model": loading.item_checksum(item),
        "optimizer": loading.item_checksum(loading.by_name(wanted.opt_state)),
        "average": loading.item_checksum(wanted.ema),
    }


def test_template_may_be_abstract(folder, state, mesh):
    abstract = jax.eval_shape(lambda x: x, state)
    assert isinstance(abstract, TrainState)
    assert_is_step(restore(folder, abstract, mesh), state, 6)
