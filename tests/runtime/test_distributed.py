import pytest

from flair_jax.errors import UserError
from flair_jax.runtime import distributed


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "4"}, False),  # a shell of salloc, outside srun
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "t1k-0,t1k-1"}, True),
    ],
)
def test_where_several_processes_are_recognised(environment, expected):
    assert distributed.recognised(environment) is expected


def test_flags_that_belong_together():
    with pytest.raises(UserError, match=r"missing: --num_processes, --process_id"):
        distributed.start(coordinator="10.0.0.1:1234")


def test_alone_nothing_is_started(monkeypatch):
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    distributed.start()
    import jax

    assert not jax.distributed.is_initialized()


def test_hosts_that_do_not_meet(monkeypatch):
    def initialize(*args):
        raise RuntimeError("DEADLINE_EXCEEDED")

    monkeypatch.setattr("jax.distributed.initialize", initialize)
    with pytest.raises(UserError) as caught:
        distributed.start(True, "localhost:1", 2, 1)
    first, second = str(caught.value).splitlines()
    assert first == "the hosts could not be joined: DEADLINE_EXCEEDED"
    assert second.startswith("Check that every host runs the same command")
