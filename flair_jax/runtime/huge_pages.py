"""Huge memory pages (2 MiB), which the C library requests only if told before Python starts."""

import os
import pathlib
import sys

MODE = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
VARIABLE, VALUE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"


def use(module: str = "flair_jax", script: str = "flair-jax") -> None:
    """Restarts a command in the same process with huge pages, where the system has them.

    XLA allocates the memory of a step again for each step: gigabytes, which the kernel would supply
    in 4 KiB pages, half a million of them for four patches. Linux usually gives larger ones only to
    programs that ask. The process keeps its number, its files and its arguments; it is not started
    again where somebody has set the variable (to nothing, for example, to be without), or where
    Python was started in another way, by a debugger or a notebook.

    Args:
        module: full name of the module, if it is started as `python -m module`.
        script: file name of the script that is installed for it.
    """
    if VARIABLE in os.environ or sys.platform != "linux":
        return
    arguments = sys.orig_argv[1:]
    if not _starts(arguments, module, script):
        return
    try:
        asked_for = "[madvise]" in MODE.read_text()
    except OSError:
        return
    if asked_for:
        os.environ[VARIABLE] = VALUE
        os.execv(sys.executable, [sys.executable, *arguments])


def _starts(arguments: list[str], module: str, script: str) -> bool:
    """Whether arguments of Python start the module or the script, with no debugger between."""
    options = iter(arguments)
    for argument in options:
        if argument == "-m":
            return next(options, "") == module
        if argument in ("-X", "-W"):
            next(options, "")
        elif not argument.startswith("-"):
            return pathlib.Path(argument).name == script
    return False
