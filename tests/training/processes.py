"""Stopping `allora train` at a chosen call of a function: in a process of its own that is killed, or by a copy of its files.

What SIGKILL leaves of a run is what is on the disk at that moment. So a copy of the directory, taken while the run goes on,
is what a kill there would have left; test_resume.py shows it with real kills.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["alloralib.training.run", "alloralib.reporting.card", "matplotlib.figure", __name__])


@dataclass(frozen=True)
class Point:
    """A moment in a run: the `call`-th call of a function, before or after it.

    Attributes:
        module, name: the function, `module.name` (name may be `Class.method`).
        call: counted from 1.
        when: "before", "after"; "torn": after it, and the file that it wrote is cut in half.
    """

    module: str
    name: str
    call: int = 1
    when: str = "before"

    def __str__(self) -> str:
        return f"{self.when}-{self.name}-{self.call}"

    def arm(self, act: Callable[[Path | None], None], patch: pytest.MonkeyPatch) -> None:
        """Have `act` called at that moment, with the file that was written if it is to be cut in half."""
        owner, name = locate(self.module, self.name)
        right: Callable[..., Any] = getattr(owner, name)
        calls = 0

        def watched(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            reached = calls == self.call
            if reached and self.when == "before":
                act(None)
            result = right(*args, **kwargs)
            if reached and self.when != "before":
                act(next(a for a in args if isinstance(a, Path)) if self.when == "torn" else None)
            return result

        patch.setattr(owner, name, watched)


def locate(module: str, name: str) -> tuple[Any, str]:
    """The object that has a function as its attribute, and the attribute's name."""
    owner: Any = importlib.import_module(module)
    *path, name = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    return owner, name


def cut(file: Path) -> None:
    """Cut a file in half."""
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)


def run(words: list[str], point: Point | None = None, number: int = signal.SIGKILL, log: Path | None = None) -> int:
    """Run the command line in a process of its own.

    Args:
        point: where the process sends itself the signal `number`.
        log: gets standard error.

    Returns:
        its exit code, negative if a signal ended it.
    """
    process = CONTEXT.Process(target=_child, args=(words, point, number, log))
    process.start()
    process.join(240)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def _child(words: list[str], point: Point | None, number: int, log: Path | None) -> None:
    import sys

    import torch

    from alloralib.cli.main import main

    def strike(torn: Path | None) -> None:
        if torn is not None:
            cut(torn)
        os.kill(os.getpid(), number)

    torch.set_num_threads(1)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
    sys.stderr = open(log or os.devnull, "w")  # noqa: SIM115, PTH123
    if point is not None:
        point.arm(strike, pytest.MonkeyPatch())
    code = main(words)
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def sigterm_in_step(number: int) -> Generator[None]:
    """SIGTERM arrives in the `number`-th step (from 1) of a run in this process."""
    steps, step = count(1), Trainer.training_step

    def stopped(*arguments: Any, **named: Any) -> Any:
        if next(steps) == number:
            signal.raise_signal(signal.SIGTERM)
        return step(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "training_step", stopped)
        yield
