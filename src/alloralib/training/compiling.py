"""`torch.compile` in a run: what is compiled, what that costs, and after how many steps it pays.

The repeated blocks of a model are compiled one by one, not the whole model. They are alike, so one compilation serves all
of them; the embedding, the head and the chunked loss around them stay as they are. Sequence lengths are symbolic, so
batches of other lengths need no recompilation, but a batch without padding has another mask and is a program of its own.
Only training steps run compiled; validation and generation do not.

Blocks are compiled in place (`nn.Module.compile`), so no parameter is renamed.

Private API used here: torch inductor's `get_cpp_compiler`, which finds the C++ compiler or raises.
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

# A block that cannot be compiled whole is refused, not compiled in pieces. The cache of FX graphs is off because it holds
# pickles; torch still caches what the C++ compiler makes.
COMPILER: dict[str, Any] = {
    "backend": "inductor", "dynamic": True, "fullgraph": True, "options": {"fx_graph_cache": False}
}  # fmt: skip
ROUNDS = 3
FLAG = "--compile"
REMEDY = "leave out --compile: it changes the speed and nothing else"


def check_compiling() -> None:
    """Check that this machine and this launch can compile.

    Raises:
        ConfigError: several processes, or no C++ compiler on a CPU.
    """
    if PartialState(cpu=on_cpu()).num_processes > 1:
        raise ConfigError("compiling is not tested with several processes", where=FLAG, remedy=REMEDY)
    if not on_cpu():  # Triton, which torch uses there, needs no C++ compiler
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        remedy = "install g++ (or set CXX to another compiler), or " + REMEDY
        raise ConfigError("compiling for a CPU needs a C++ compiler, and there is none", where=FLAG, remedy=remedy) from None


def compile_blocks(model: nn.Module) -> list[nn.Module]:
    """Have the repeated blocks of a model compiled when they are called next.

    The first trained block and those before it are left out: the gradient stops there, so each of them would be a
    program of its own.

    Returns:
        the blocks that will be compiled.

    Raises:
        ModelError: there are none.
    """
    blocks: list[nn.Module] = []
    for alike in _repeated(model):
        trained = [i for i, block in enumerate(alike) if any(p.requires_grad for p in block.parameters())]
        blocks += alike[trained[0] + 1 :] if trained else []
    if not blocks:
        what = f"{type(model).__name__} has no repeated blocks above its first trained one, so there is nothing to compile"
        raise ModelError(what, where=FLAG, remedy=REMEDY)
    torch.compiler.reset()  # programs of earlier runs in this process count against torch's limit
    for block in blocks:
        block.compile(**COMPILER)
    return blocks


def eagerly(compiled: bool = True) -> AbstractContextManager[Any]:
    """Run compiled blocks uncompiled within a `with` block.

    Args:
        compiled: whether there are any; if not, nothing is done and the compiler is not even imported.
    """
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def programs(batches: Iterable[list[int]], lengths: list[int]) -> list[list[int]]:
    """One batch for each program that training needs: one with padding and one without, if there are such batches."""
    batches = list(batches)
    kinds: dict[bool, list[int]] = {}
    for batch in batches:
        if not too_small(len(batch), len(batches[0])):
            kinds.setdefault(len({lengths[row] for row in batch}) > 1, batch)
    return list(kinds.values())


def too_small(rows: int, batch_size: int) -> bool:
    """Whether a batch has one row and the others more: torch compiles size 1 apart, which never pays, so it runs eagerly."""
    return rows == 1 < batch_size


def measure(step: Callable[[list[int]], float], batches: list[list[int]], median: list[int]) -> dict[str, float]:
    """Time compilation, and a forward and backward pass with and without it.

    Args:
        step: does such a pass for some training rows and returns its seconds.
        batches: `programs`.
        median: rows of a batch of median length, on which passes are compared.

    Returns:
        `compile_seconds`, `eager_seconds` and `compiled_seconds`; the last two are medians per pass.

    Raises:
        TrainingError: the compiler failed, or cannot compile these blocks.
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
                    passes[eager].append(step(median))
    except TorchDynamoException as error:
        reason = " ".join(str(error).split("\n\n")[0].split())[:200]
        raise TrainingError(f"torch.compile failed ({type(error).__name__}: {reason})", where=FLAG, remedy=REMEDY) from error
    eager, compiled = (statistics.median(passes[way]) for way in (True, False))
    return {"compile_seconds": compiling, "eager_seconds": eager, "compiled_seconds": compiled}


def break_even(compile_seconds: float, saved: float) -> int | None:
    """The number of steps after which compiling pays; None if it never does.

    >>> break_even(41, 0.12), break_even(41, 0)
    (342, None)
    """
    return math.ceil(compile_seconds / saved) if saved > 0 else None


def describe(cost: dict[str, Any]) -> str:
    """The preflight's `cost` of compiling in a sentence.

    >>> cost = {"steps": 120, "compile_seconds": 41, "eager_step_seconds": 2.02, "step_seconds": 1.9}
    >>> describe(cost | {"break_even_steps": 342})
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
