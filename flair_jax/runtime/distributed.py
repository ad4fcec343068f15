"""Multi-host start-up of `jax.distributed`, and clusters where it starts by itself."""

import faulthandler
import os
import sys
from collections.abc import Mapping
from typing import NoReturn

from flair_jax.errors import UserError


def start(
    multihost: bool | None = None,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Starts `jax.distributed` if the flags or the environment tell of several hosts.

    Args:
        multihost: whether there are; None: as the environment tells, see `recognised`.
        coordinator: HOST:PORT of process 0, on clusters that JAX does not recognise; with it the
            other two are needed.
        num_processes: number of hosts.
        process_id: this host's number from 0.

    Raises:
        UserError: the flags do not go together, or the hosts do not find each other.
    """
    given = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    absent = [f"--{name}" for name, value in given.items() if value is None]
    if 0 < len(absent) < len(given):
        raise UserError(
            "--coordinator, --num_processes and --process_id belong together; missing: "
            + ", ".join(absent)
        )
    by_itself = multihost is None and recognised(os.environ)
    if absent and not multihost and not by_itself:
        return
    import jax

    try:
        if absent:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the hosts could not be joined: {error}\nCheck that every host runs the same command "
            "and reaches the first one. Set --coordinator=HOST:PORT --num_processes=N "
            "--process_id=I explicitly, or use --nomultihost to run on one host."
        ) from error
    # When another host has died, JAX reports it and aborts: the stacks of all threads, which absl
    # prints then, would bury that message.
    faulthandler.disable()


def joined() -> bool:
    """Whether this is one of several hosts."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def leave(status: int | str) -> NoReturn:
    """Ends the program, as `sys.exit` does; as one of several hosts without waiting for the others.

    They may be waiting for this one: an ordinary end would hold it, and them, for minutes.
    """
    if not joined():
        sys.exit(status)
    if isinstance(status, str):
        print(status, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


def recognised(environment: Mapping[str, str]) -> bool:
    """Whether an environment is that of one of several processes, which JAX then joins by itself.

    Args:
        environment: of this process: Slurm's `srun`, Open MPI's `mpirun`, or a multi-host TPU
            slice on GKE. A Cloud TPU pod's virtual machines cannot be told from single ones.
    """
    counts = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    if any(environment.get(name, "1") not in ("", "1") for name in counts):
        return True
    return "," in environment.get("TPU_WORKER_HOSTNAMES", "")
