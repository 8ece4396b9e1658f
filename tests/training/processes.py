"""`allora train` in processes of its own that can be killed; forked from one that has done the imports already."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["alloralib.training.run", "alloralib.reporting.card", "matplotlib.figure", __name__])


@dataclass(frozen=True)
class Strike:
    """Where a process is hit: at the `call`-th call of a function, before it, half way, or after it.

    Attributes:
        module, name: the function, `module.name` (name may be `Class.method`).
        call: counted from 1.
        when: "before", "after"; "torn": the call is done, and the file that it wrote is cut in half; "instead": nothing is
            hit, and no call of the function does anything.
        signal: what hits.
    """

    module: str
    name: str
    call: int = 1
    when: str = "before"
    signal: int = signal.SIGKILL

    def __str__(self) -> str:
        return f"{self.when}-{self.name}-{self.call}"

    def arm(self) -> None:
        """Replace the function in this process."""
        import importlib

        owner: Any = importlib.import_module(self.module)
        *path, name = self.name.split(".")
        for part in path:
            owner = getattr(owner, part)
        right: Callable[..., Any] = getattr(owner, name)
        calls = 0

        def struck(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            if self.when == "instead":
                return None
            calls += 1
            if calls == self.call and self.when == "before":
                os.kill(os.getpid(), self.signal)
            result = right(*args, **kwargs)
            if calls == self.call and self.when == "torn":
                file = Path(next(a for a in args if isinstance(a, Path)))
                with file.open("r+b") as opened:
                    opened.truncate(file.stat().st_size // 2)
            if calls == self.call and self.when != "before":
                os.kill(os.getpid(), self.signal)
            return result

        setattr(owner, name, struck)


def run(words: list[str], strike: Strike | None = None, log: Path | None = None) -> int:
    """Run the command line in a process of its own.

    Args:
        log: gets standard error.

    Returns:
        its exit code, negative where a signal ended it.
    """
    process = CONTEXT.Process(target=_child, args=(words, strike, log))
    process.start()
    process.join(240)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def _child(words: list[str], strike: Strike | None, log: Path | None) -> None:
    import sys

    import torch

    from alloralib.cli.main import main

    torch.set_num_threads(1)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
    sys.stderr = open(log or os.devnull, "w")  # noqa: SIM115, PTH123
    if strike is not None:
        strike.arm()
    code = main(words)
    sys.stderr.flush()
    os._exit(code)
