"""flair_jax.runtime.huge_pages: a command starts itself once more, and as the same process."""

import os
import subprocess
import sys

import pytest

PROBE = """
import os, pathlib, sys
from flair_jax.runtime import huge_pages
huge_pages.MODE = pathlib.Path(os.environ["MODE"])
huge_pages.use("probe", "probe-it")
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], sys.flags.optimize)
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that gives them")


def run_probe(folder, *start: str, mode: str = "always [madvise] never", **variables: str):
    """Runs the probe; returns whether the process is still the same, and what it printed."""
    (folder / "probe.py").write_text(PROBE)
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "probe-it").write_text("import sys\nsys.path.insert(0, '.')\nimport probe\n")
    (folder / "mode").write_text(mode)
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    with subprocess.Popen(
        [sys.executable, *start, "one", "two words"], cwd=folder, text=True, stdout=subprocess.PIPE,
        env=environment | {"MODE": str(folder / "mode")} | variables,
    ) as process:  # fmt: skip
        out, _ = process.communicate()
    pid, _, rest = out.strip().partition(" ")
    return int(pid) == process.pid, rest


@pytest.mark.parametrize(
    "start",
    [
        ("-O", "-m", "probe"),
        ("-O", "-X", "dev", "-m", "probe"),
        ("-O", "bin/probe-it"),  # as the script of an installed package
        ("-O", "-W", "default", "bin/probe-it"),
    ],
)
def test_the_command_is_started_again_in_its_own_place(tmp_path, start):
    same, output = run_probe(tmp_path, *start)
    assert same
    assert output == "glibc.malloc.hugetlb=1 ['one', 'two words'] 1"


@pytest.mark.parametrize("mode", ["[always] madvise never", "always madvise [never]"])
def test_it_is_not_where_asking_changes_nothing(tmp_path, mode):
    assert run_probe(tmp_path, "-m", "probe", mode=mode) == (True, "None ['one', 'two words'] 0")


def test_it_is_not_where_the_variable_is_set(tmp_path):
    same, output = run_probe(tmp_path, "-m", "probe", GLIBC_TUNABLES="")
    assert same
    assert output == " ['one', 'two words'] 0"


@pytest.mark.parametrize("start", [("probe.py",), ("-m", "runpy", "probe"), ("-c", "import probe")])
def test_it_is_not_where_python_was_started_in_another_way(tmp_path, start):
    _, output = run_probe(tmp_path, *start)
    assert output.startswith("None ")
