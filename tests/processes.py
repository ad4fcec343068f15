"""Several processes over loopback in place of several hosts, with the devices in any order."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# The mesh in the order of ORDER: in that of a TPU pod the devices of a process are no neighbours.
PERMUTE = """
import json, os, jax
from flair_jax.runtime import sharding
order, make_mesh, initialize = json.loads(os.environ["ORDER"]), *(
    sharding.make_mesh, jax.distributed.initialize)

def make_permuted_mesh(devices=None):
    return make_mesh([jax.devices()[i] for i in order] if order and devices is None else devices)

def initialize_and_meet(*args):
    # Gloo's processes must meet within 30 seconds: at once, not after each has compiled.
    initialize(*args)
    sharding.wait_for_hosts("started")
    texts = sharding.np.array([["x"] * len(jax.local_devices())])
    sharding.gather_texts(texts, make_permuted_mesh())

sharding.make_mesh, jax.distributed.initialize = make_permuted_mesh, initialize_and_meet
"""
COMMAND = "import runpy; runpy.run_module('flair_jax.main', run_name='__main__', alter_sys=True)"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(code, *arguments, devices, order=(), **variables):
    """A process that runs Python code with so many virtual devices, in this order."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "ORDER": str(list(order)),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    return subprocess.Popen(
        [sys.executable, "-c", PERMUTE + code, *map(str, arguments)],
        cwd=ROOT, env=environment | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def finish(*processes):
    """The outputs of processes that must all succeed."""
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)
    return outputs
