"""A run that is stopped anywhere resumes exactly, by every recipe; of a small model."""

import json

import pytest

from flair_jax import config as configuration
from flair_jax.errors import UserError
from flair_jax.runtime.preemption import Preempted, StopSignals
from flair_jax.training import loop

RECIPES = {
    "baseline": {},
    "adamw": {
        "optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01, "schedule": "one_cycle",
        "augment": True, "augment_radiometry": True, "ema_decay": 0.9, "monitor": "val_miou_ema",
        "accumulate_steps": 2, "clip_norm": 1.0,
    },
    "cosine": {"schedule": "warmup_cosine", "weight_decay": 0.001, "crop_size": 32},
}  # fmt: skip


@pytest.fixture(scope="module", params=RECIPES)
def config(request, data_dir, tiny_model):
    config = configuration.default()
    config.data_dir = str(data_dir)
    config.batch_size = 4
    config.num_epochs = 2
    config.log_every_steps = 1
    config.report_after_training = False
    config.tensorboard_patches = 0
    config.update(RECIPES[request.param])
    return config


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "tiny"


@pytest.fixture(scope="module")
def metrics(config, workdir):
    return loop.train_and_evaluate(config, workdir)


def written(workdir, *keys):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: line.get(k) for k in ("step", *keys)} for line in lines if keys[0] in line]


def everything(workdir):
    keys = ("val_loss", "train_loss", "val_miou", "val_loss_ema", "learning_rate", "epoch")
    return written(workdir, "loss", "grad_norm"), written(workdir, *keys)


class SignalAfter(StopSignals):
    """Reports SIGTERM from the `reads`-th read on."""

    reads = 0

    @property
    def received(self):
        SignalAfter.reads -= 1
        return "SIGTERM" if SignalAfter.reads < 0 else ""

    @received.setter
    def received(self, _):
        pass


# An epoch asks four times while training and once for the only batch of each validation.
@pytest.mark.parametrize(("reads", "step"), [(2, 4), (4, 4), (6, 7)])
def test_it_resumes_exactly(config, workdir, metrics, tmp_path, monkeypatch, reads, step):
    reads += bool(config.ema_decay and reads > 5)  # which is validated too
    with monkeypatch.context() as patch:
        patch.setattr(loop, "StopSignals", SignalAfter)
        SignalAfter.reads = reads
        with pytest.raises(Preempted, match=f"stopped by SIGTERM: step {step} is saved"):
            loop.train_and_evaluate(config, tmp_path)
    assert not (tmp_path / "evaluation").exists()
    again = loop.train_and_evaluate(config, tmp_path)
    assert again | {"provenance": None} == metrics | {"provenance": None}
    assert everything(tmp_path) == everything(workdir)


def test_the_end_of_a_schedule_cannot_be_moved(config, workdir, metrics):
    longer = config.copy_and_resolve_references()
    longer.num_epochs = 3
    if config.schedule == "plateau":
        configuration.check_unchanged(longer, workdir)
    else:
        with pytest.raises(UserError, match=r"config\.num_epochs: 2 in the run, 3 given"):
            configuration.check_unchanged(longer, workdir)
    assert [line["learning_rate"] for line in everything(workdir)[1]] == pytest.approx(
        {
            "plateau": [0.02, 0.02],
            "one_cycle": [1e-3 * 0.8117, 1e-3 * 0.0495],
            "warmup_cosine": [0.02 * 0.8117, 0.02 * 0.0495],
        }[config.schedule],
        rel=1e-3,
    )
