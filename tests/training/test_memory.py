"""Freed memory stays with the process, unless the environment says otherwise."""

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from alloralib.training.memory import keep_freed_memory
told = keep_freed_memory() if sys.argv[1] == "keep" else None
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
for _ in range(3):
    blocks = [bytearray(3 * 2**20) for _ in range(100)]
    del blocks
print(told, resident())
"""


def _resident(mode: str, **environment: str) -> tuple[str, float]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode], env=clean | environment, capture_output=True, text=True, check=True
    )
    told, mebibytes = done.stdout.split()
    return told, float(mebibytes)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_freed_memory_stays_with_the_process():
    assert _resident("leave")[1] < 100
    told, mebibytes = _resident("keep")
    assert told == "True"
    assert mebibytes > 250


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_an_environment_variable_takes_precedence():
    told, mebibytes = _resident("keep", MALLOC_ARENA_MAX="2")
    assert told == "False"
    assert mebibytes < 100
