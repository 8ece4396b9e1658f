"""`torch.compile` in a run: what is compiled, what that takes and saves, and after how many steps it has paid.

The repeated blocks of a model are compiled one by one, not the whole of it. They are alike, so the compiler's work for
one of them serves all, and what stands around them stays as it is: the embedding, the head, the loss taken in chunks.
Lengths are symbols in the compiled code, so length buckets cost nothing; that a batch has no padding changes the mask,
and is a program of its own. Only training steps run compiled. Whatever looks at the model in between (validation,
generation) runs it as it was written.

Blocks are compiled in place (`nn.Module.compile`), which changes no name of a parameter.

Foreign private API used here: `get_cpp_compiler` of torch's inductor, which finds the compiler or raises.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

from ..errors import ConfigError, ModelError, TrainingError
from .processes import on_cpu

# A block that cannot be compiled whole is refused, not compiled in pieces. The cache of graphs would be made of pickles;
# what the C++ compiler makes is kept by torch all the same.
COMPILER: dict[str, Any] = {
    "backend": "inductor", "dynamic": True, "fullgraph": True, "options": {"fx_graph_cache": False}
}  # fmt: skip
ROUNDS = 3
FLAG = "--compile"
REMEDY = "leave out --compile: it changes the speed and nothing else"


def check_compiling() -> None:
    """Raise `ConfigError` where this machine or this launch cannot compile."""
    if PartialState(cpu=on_cpu()).num_processes > 1:
        raise ConfigError("compiling is not tested with several processes", where=FLAG, remedy=REMEDY)
    if not on_cpu():  # there torch brings Triton, which needs none of it to be found before
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise ConfigError(
            "compiling for a CPU needs a C++ compiler, and there is none",
            where=FLAG,
            remedy="install g++ (or set CXX to the compiler that is there), or " + REMEDY,
        ) from None


def compile_blocks(model: nn.Module) -> list[nn.Module]:
    """Have the repeated blocks of a model compiled when they are called next.

    The first block that is trained, and what comes before it, are left out: the gradient stops there, so they would be
    programs of their own, compiled for one block each.

    Returns:
        the blocks that are.

    Raises:
        ModelError: there are none.
    """
    blocks: list[nn.Module] = []
    for alike in _repeated(model):
        trained = [i for i, block in enumerate(alike) if any(p.requires_grad for p in block.parameters())]
        blocks += alike[trained[0] + 1 :] if trained else []
    if not blocks:
        raise ModelError(
            f"{type(model).__name__} has no repeated blocks above its first trained one: there is nothing to compile",
            where=FLAG,
            remedy=REMEDY,
        )
    torch.compiler.reset()  # what earlier runs of this process compiled counts against torch's limit of programs
    for block in blocks:
        block.compile(**COMPILER)
    return blocks


def eagerly(compiles: bool = True) -> AbstractContextManager[Any]:
    """Run compiled blocks as they were written within a `with` block.

    Args:
        compiles: whether there are any; the compiler is not even imported where not.
    """
    return torch.compiler.set_stance("force_eager") if compiles else nullcontext()


def programs(batches: Iterable[list[int]], lengths: list[int]) -> list[list[int]]:
    """One batch for each program that training will need: one with padding and one without, of those there are.

    A batch of one row among larger ones is not compiled for, see `too_small`.
    """
    batches = list(batches)
    kinds: dict[bool, list[int]] = {}
    for batch in batches:
        if not too_small(len(batch), len(batches[0])):
            kinds.setdefault(len({lengths[row] for row in batch}) > 1, batch)
    return list(kinds.values())


def too_small(rows: int, batch_size: int) -> bool:
    """Whether a batch has one row where others have more: torch compiles for a size of 1 apart, and that never pays."""
    return rows == 1 < batch_size


def measure(step: Callable[[list[int]], float], batches: list[list[int]], middling: list[int]) -> dict[str, float]:
    """What compiling takes, and a forward and backward pass with and without it.

    Args:
        step: does such a pass for rows of the training set and gives its seconds.
        batches: `programs`.
        middling: the rows that passes are compared on.

    Returns:
        `compile_seconds`, `eager_seconds` and `compiled_seconds`, the last two medians per pass.

    Raises:
        TrainingError: the compiler failed, or cannot compile such blocks.
    """
    from torch._dynamo.exc import TorchDynamoException

    compiling = 0.0
    passes: dict[bool, list[float]] = {True: [], False: []}
    try:
        for rows in batches:
            compiling += max(0.0, step(rows) - step(rows))
        for _ in range(ROUNDS):
            for eager in passes:
                with eagerly(eager):
                    passes[eager].append(step(middling))
    except TorchDynamoException as error:
        reason = " ".join(str(error).split("\n\n")[0].split())[:200]
        raise TrainingError(f"torch.compile failed ({type(error).__name__}: {reason})", where=FLAG, remedy=REMEDY) from error
    eager, compiled = (statistics.median(passes[way]) for way in (True, False))
    return {"compile_seconds": compiling, "eager_seconds": eager, "compiled_seconds": compiled}


def break_even(compile_seconds: float, saved: float) -> int | None:
    """The number of steps after which compiling has paid; None where it never does.

    >>> break_even(41, 0.12), break_even(41, 0)
    (342, None)
    """
    return math.ceil(compile_seconds / saved) if saved > 0 else None


def describe(cost: dict[str, Any]) -> str:
    """What preflight's `cost` says of compiling, in a sentence.

    >>> found = {"steps": 120, "compile_seconds": 41, "eager_step_seconds": 2.02, "step_seconds": 1.9}
    >>> describe(found | {"break_even_steps": 342})
    'takes 41 s and saves 0.120 s a step (1.900 s, not 2.020 s): pays after 342 steps; this run has 120'
    """
    taken, eager, compiled = cost["compile_seconds"], cost["eager_step_seconds"], cost["step_seconds"]
    if cost["break_even_steps"] is None:
        return f"takes {taken:.0f} s and saves nothing ({compiled:.3f} s a step, {eager:.3f} s without): it never pays"
    return (
        f"takes {taken:.0f} s and saves {eager - compiled:.3f} s a step ({compiled:.3f} s, not {eager:.3f} s): pays after "
        f"{cost['break_even_steps']:,} steps; this run has {cost['steps']:,}"
    )


def _repeated(module: nn.Module) -> list[list[nn.Module]]:
    """The outermost lists of blocks of one class."""
    if isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(block) for block in module}) == 1:
        return [list(module)]
    return [alike for child in module.children() for alike in _repeated(child)]
